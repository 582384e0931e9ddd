"""How answers are written on stdout."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click

from lazyfs.printable import masked, one_line, printable_json

STDOUT: Final = Path("standard output")  # for messages
_UNITS: Final = (("", 1), ("K", 1 << 10), ("M", 1 << 20), ("G", 1 << 30), ("T", 1 << 40))


def print_json(value: Any) -> None:
    """One JSON document on stdout, in UTF-8.

    Bytes of file names that are no UTF-8 come as the escapes of lone surrogates, from U+DC80 on, which JSON
    can say and os.fsencode turns back.
    """
    print_document(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def print_document(document: str) -> None:
    """A JSON document on stdout, as `print_json` writes one."""
    with naming(STDOUT):
        sys.stdout.buffer.write(printable_json(document).encode() + b"\n")


def shown(name: bytes) -> str:
    """A file name as text that `write_line` and `print_json` can write, whatever its bytes are."""
    return name.decode("utf-8", "surrogateescape")


def write_line(text: str, end: bytes = b"\n") -> None:
    """A line on stdout, with names that are not UTF-8 written as their own bytes.

    On a terminal, which they could command, what is not printable is replaced, as ls(1) does it; tabs stay.
    """
    if sys.stdout.isatty():
        text = "\t".join(map(masked, text.split("\t")))
    try:
        sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape") + end)
    except OSError as error:
        raise _at(STDOUT, error) from None


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let what the system refuses in here be told of `path`."""
    try:
        yield
    except OSError as error:
        raise _at(path, error) from None


def _at(path: Path, error: OSError) -> OSError:
    return OSError(error.errno, error.strerror, str(path))


def complain(message: str) -> None:
    """One line on stderr."""
    click.echo(f"lazyfs: {one_line(message)}", err=True)


def write_table(rows: Sequence[Sequence[str]], right: str) -> None:
    """Rows on stdout in columns; the last column is as wide as it likes.

    What is not printable is replaced in every cell: a line break in a name must not look like a row.

    Args:
        rows: all of the same length; the first may hold headings.
        right: "r" for each column that is set to the right, any other letter for the others.
    """
    rows = [list(map(masked, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.rjust(width) if side == "r" else cell.ljust(width)
            for cell, width, side in zip(row, widths, right, strict=True)
        ]
        write_line("  ".join(cells).rstrip())


def human(size: int) -> str:
    """A number of bytes as du -h writes it: rounded up, with one decimal below 10 units."""
    unit, step = next((pair for pair in _UNITS if size <= 1023 * pair[1]), _UNITS[-1])
    if step == 1:
        return str(size)
    tenths = -(-size * 10 // step)
    return f"{tenths // 10}.{tenths % 10}{unit}" if tenths < 100 else f"{-(-size // step)}{unit}"
