"""ls, tree, find, cat, stat, cp: looking into an image without a mount."""

import errno
import os
import re
import stat as modes
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click

from lazyfs.api import AsyncImage
from lazyfs.cli.completing import complete_image
from lazyfs.cli.options import GivenPath, configured
from lazyfs.cli.output import print_json, shown, write_line
from lazyfs.cli.running import with_image
from lazyfs.cli.stream import Output
from lazyfs.config import Config
from lazyfs.image.inside.browse import Entry, Query

_TYPES: Final = {
    "f": "file",
    "d": "directory",
    "l": "symlink",
    "p": "pipe",
    "s": "socket",
    "c": "character device",
    "b": "block device",
}
_UNITS: Final = {"": 1, "c": 1, "k": 1 << 10, "M": 1 << 20, "G": 1 << 30}

_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_path_argument = click.argument("path", default="/")


@click.command()
@configured
@click.argument("image", shell_complete=complete_image)
@_path_argument
@click.option("-l", "long", is_flag=True, help="Mode, owner, size, time.")
@click.option("-d", "itself", is_flag=True, help="A directory itself, not what is in it.")
@_json_option
def ls(config: Config, image: str, path: str, long: bool, itself: bool, as_json: bool) -> None:
    """List a directory of IMAGE, or a file."""

    async def work(opened: AsyncImage) -> None:
        top = opened.entry(path, follow=not itself)
        entries = [top] if itself or top.letter != "d" else opened.scandir(path)
        if as_json:
            print_json([entry.facts() for entry in entries])
            return
        for entry in entries:
            name = shown(entry.name) or "/"
            write_line(_long(entry, name) if long else name)

    with_image(config, image, work)


def _long(entry: Entry, name: str) -> str:
    inode = entry.inode
    size = f"{os.major(inode.rdev)}, {os.minor(inode.rdev)}" if entry.letter in "cb" else str(inode.size)
    when = _when(inode.mtime_ns // 1_000_000_000)
    arrow = f" -> {shown(entry.target)}" if entry.target else ""
    owner = f"{inode.uid:>5} {inode.gid:>5}"
    return f"{modes.filemode(inode.mode)} {inode.nlink:>3} {owner} {size:>10} {when} {name}{arrow}"


def _when(seconds: int, form: str = "%Y-%m-%d %H:%M") -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime(form)
    except (ValueError, OverflowError, OSError):  # no calendar has it
        return f"{seconds} s"


@click.command()
@configured
@click.argument("image", shell_complete=complete_image)
@_path_argument
@click.option("-L", "--level", type=click.IntRange(min=1), help="Go down so many directories only.")
@_json_option
def tree(config: Config, image: str, path: str, level: int | None, as_json: bool) -> None:
    """Draw the tree below a directory of IMAGE."""

    async def work(opened: AsyncImage) -> None:
        found = list(opened.below(path, level))
        if as_json:
            print_json([entry.facts() for _, entry in found])
            return
        for depth, entry in found:
            arrow = f" -> {shown(entry.target)}" if entry.target else ""
            slash = "/" if entry.letter == "d" else ""
            write_line(f"{'  ' * depth}{shown(entry.name)}{slash}{arrow}")

    with_image(config, image, work)


@click.command()
@configured
@click.argument("image", shell_complete=complete_image)
@_path_argument
@click.option("-name", "--name", metavar="PATTERN", help="The last component matches this shell pattern.")
@click.option("-path", "--path", "whole", metavar="PATTERN", help="The whole path matches it.")
@click.option("-type", "--type", "letter", type=click.Choice(list("fdlcbps")), help="What it is.")
@click.option("-size", "--size", metavar="[+-]N[ckMG]", help="More (+), less (-) or exactly N bytes.")
@click.option("-newer", "--newer", metavar="TIME", help="Modified after this ISO 8601 time (UTC).")
@click.option("-0", "--print0", is_flag=True, help="End names with NUL.")
@_json_option
def find(
    config: Config, image: str, path: str, print0: bool, as_json: bool, **conditions: str | None
) -> None:
    """Find files in IMAGE below PATH by name, type, size and time."""
    query = _query(**conditions)

    async def work(opened: AsyncImage) -> None:
        found = opened.find(path, query)
        if as_json:
            print_json([entry.facts() for entry in found])
            return
        for entry in found:
            write_line("/" + shown(entry.path), b"\0" if print0 else b"\n")

    with_image(config, image, work)


def _query(
    *, name: str | None, whole: str | None, letter: str | None, size: str | None, newer: str | None
) -> Query:
    smallest, largest = _size_range(size) if size else (None, None)
    return Query(
        name=name,
        path=whole,
        letter=letter,
        min_size=smallest,
        max_size=largest,
        newer_ns=_time_ns(newer) if newer else None,
    )


def _size_range(text: str) -> tuple[int | None, int | None]:
    match = re.fullmatch(r"([+-]?)(\d{1,18})([ckMG]?)", text, re.ASCII)
    if match is None:
        raise click.BadParameter(f"--size is like 4096, +10M or -2k, not {text!r}")
    size = int(match[2]) * _UNITS[match[3]]
    return {"": (size, size), "+": (size + 1, None), "-": (None, size - 1)}[match[1]]


def _time_ns(text: str) -> int:
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(f"--newer is like 2024-02-29 or 2024-02-29T12:00, not {text!r}") from None
    return int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1_000_000_000)


@click.command()
@configured
@click.argument("image", shell_complete=complete_image)
@click.argument("paths", nargs=-1, required=True)
def cat(config: Config, image: str, paths: tuple[str, ...]) -> None:
    """Write files of IMAGE to standard output, fetching only what they need."""

    async def work(opened: AsyncImage) -> None:
        out = Output()
        try:
            for path in paths:
                async for piece in opened.pieces(path):
                    await out.write(piece)
        finally:  # what came before an error counts
            await out.flush()

    with_image(config, image, work)


@click.command()
@configured
@click.argument("image", shell_complete=complete_image)
@click.argument("path")
@click.option("-L", "--dereference", is_flag=True, help="Follow a symlink.")
@_json_option
def stat(config: Config, image: str, path: str, dereference: bool, as_json: bool) -> None:
    """Everything the image says of a file."""

    async def work(opened: AsyncImage) -> None:
        facts = _all_facts(opened, opened.entry(path, follow=dereference))
        if as_json:
            print_json(facts)
            return
        for name, value in _for_people(facts).items():
            write_line(f"{name:10}{value}")

    with_image(config, image, work)


def _for_people(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The same facts in words."""
    told = {"mtime" if name == "mtime_ns" else name: value for name, value in facts.items()}
    seconds, nanoseconds = divmod(facts["mtime_ns"], 1_000_000_000)
    told["mtime"] = _when(seconds, f"%Y-%m-%d %H:%M:%S.{nanoseconds:09} UTC")
    told["type"] = _TYPES[facts["type"]]
    told["xattrs"] = " ".join(f"{name}={value}" for name, value in facts["xattrs"].items()) or "none"
    if "device" in facts:
        told["device"] = "{}:{}".format(*facts["device"])
    return told


def _all_facts(opened: AsyncImage, entry: Entry) -> dict[str, Any]:
    facts = entry.facts()
    metadata = opened.image.metadata
    xattrs = metadata.xattrs(entry.inode.nid)
    facts["xattrs"] = {shown(name): value.hex() for name, value in xattrs.items()}
    extent = metadata.extent(entry.inode.nid) if entry.letter == "f" else None
    if extent is not None:
        facts["layer"] = opened.image.resolved.layers[extent[0]].descriptor.digest
    return facts


@click.command()
@configured
@click.argument("image", shell_complete=complete_image)
@click.argument("source")
@click.argument("target", type=GivenPath())
@click.option("-r", "--recursive", is_flag=True, help="Directories too.")
@click.option("-a", "--archive", is_flag=True, help="As -r, and keep owners, xattrs and special files.")
def cp(config: Config, image: str, source: str, target: str, recursive: bool, archive: bool) -> None:
    """Copy a file or directory out of IMAGE. Never writes through a symlink below TARGET."""
    if target == "-":
        raise click.UsageError(
            "lazyfs cat writes files to standard output, lazyfs export the whole tree; ./- is a file"
        )
    whole = recursive or archive
    if target.endswith("/") and not Path(target).is_dir() and not whole:  # a file cannot have this name
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), target)
    if not Path(target).parent.is_dir():  # before anything is pulled
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(Path(target).parent))

    async def work(opened: AsyncImage) -> None:
        await opened.copy(source, Path(target), recursive=whole, archive=archive)

    with_image(config, image, work)
