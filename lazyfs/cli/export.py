"""export: an image's tree as one tar."""

import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from lazyfs.api import AsyncImage
from lazyfs.cli.completing import complete_image
from lazyfs.cli.options import GivenPath, configured
from lazyfs.cli.output import STDOUT, naming
from lazyfs.cli.running import with_image
from lazyfs.cli.stream import Output
from lazyfs.config import Config


@click.command()
@configured
@click.argument("image", shell_complete=complete_image)
@click.option(
    "-o", "--output", type=GivenPath(path_type=Path, dir_okay=False),
    help="Write to this file, which is there whole or not at all; - is standard output.",
)  # fmt: skip
def export(config: Config, image: str, output: Path | None) -> None:
    """Write IMAGE's whole tree as one tar to standard output, as docker export does for a container.

    \b
      lazyfs export debian:12 | tar -x -C rootfs
    """  # noqa: D301  # \b is click's mark for text that is not to be wrapped
    if output is None or str(output) == "-":
        if sys.stdout.isatty():
            raise click.UsageError("a tar is not for a terminal: redirect it, or give -o FILE")
        _write(config, image, sys.stdout.fileno(), STDOUT)
    elif output.is_symlink() or (output.exists() and not output.is_file()):
        with output.open("wb", buffering=0) as file:  # a device, a pipe, /dev/stdout: it stays what it is
            _write(config, image, file.fileno(), output)
    else:
        with replacing(output) as descriptor:
            _write(config, image, descriptor, output)


@contextmanager
def replacing(target: Path) -> Iterator[int]:
    """A descriptor of a new file, which takes the place of `target` after a block that does not fail.

    Until then it has no name, where the file system has such files: who is killed leaves nothing.
    """
    # Others may write the same file at the same time.
    partial = target.with_name(f"{target.name}.{secrets.token_hex(4)}.partial")
    descriptor = _nameless(target.parent)
    named = descriptor is None
    if descriptor is None:
        with naming(target):
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        yield descriptor
        if not named:
            # A source directory, though of no account here, has Python call linkat(2), as this takes.
            os.link(f"/proc/self/fd/{descriptor}", partial, src_dir_fd=descriptor)
        partial.rename(target)
    finally:
        os.close(descriptor)
        partial.unlink(missing_ok=True)


def _nameless(directory: Path) -> int | None:
    """A new file in a directory (O_TMPFILE); None where that cannot be."""
    with suppress(OSError):
        return os.open(directory, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o666)
    return None


def _write(config: Config, image: str, descriptor: int, path: Path) -> None:
    out = Output(descriptor, path)
    with_image(config, image, lambda opened: _export(opened, out))


async def _export(opened: AsyncImage, out: Output) -> None:
    await opened.export(out.write)
    await out.flush()
