"""How answers are written on stdout."""

import json
import sys
from typing import Any

import click


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def shown(name: bytes) -> str:
    """A file name as text; bytes that are no UTF-8 come out of a JSON or UTF-8 reader as they went in."""
    return name.decode("utf-8", "surrogateescape")


def write_line(text: str) -> None:
    """A line on stdout, with names that are not UTF-8 written as their own bytes."""
    sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape") + b"\n")
