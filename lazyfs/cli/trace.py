"""trace: what readers of mounts touched, in order."""

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import click
import trio

from lazyfs.assembly import open_cache, open_workshop
from lazyfs.cache.cache import Cache
from lazyfs.cli.completing import complete_traced
from lazyfs.cli.options import configured
from lazyfs.cli.output import human, print_document, print_json, shown, write_line, write_table
from lazyfs.config import Config
from lazyfs.errors import NotFound
from lazyfs.image.boot.recording import kept_traces
from lazyfs.image.boot.trace import Trace, decode_trace
from lazyfs.image.boot.trace_files import find_head, touched_files
from lazyfs.mount.mounts import resolve_mount_point
from lazyfs.mount_states import MountStates, runtime_directory
from lazyfs.oci.image_name import parse_image


@click.group()
def trace() -> None:
    """What the readers of mounts touched first, in order.

    Every mount records it. Of an image, the traces of its last mounts are kept; a mount made with --record
    reads as little ahead as possible, so that its trace tells what was wanted and little else. DIR is a
    mount's directory.

    \b
      lazyfs trace show /mnt
      lazyfs trace export debian:12 > start.trace
    """  # noqa: D301  # \b is click's mark for text that is not to be wrapped


@trace.command()
@configured
@click.argument("target", metavar="DIR|IMAGE", shell_complete=complete_traced)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(config: Config, target: str, as_json: bool) -> None:
    """List the files that were read, in the order of first touch."""
    cache = open_cache(config)
    found = find_trace(config, cache, target)
    files = touched_files(found, partial(find_head, cache))
    if as_json:
        print_json({**_facts(found), "files": [_row(touch._asdict()) for touch in files]})
        return
    for name, value in (
        ("image", found.image),
        ("manifest", found.manifest),
        ("command", found.command or "not known"),
        ("precise", "yes" if found.precise else "no"),
        ("touched", f"{human(found.size)} in {len(found.touches)} pieces"),
    ):
        write_line(f"{name:10}{value}")
    rows = [("ms", "bytes", "layer", "path")]
    for touch in files:
        row = (f"{touch.at_us / 1000:.1f}", str(touch.size), str(touch.layer), shown(touch.path) or "-")
        rows.append(row)
    write_table(rows, "rrrl")


@trace.command()
@configured
@click.argument("target", metavar="DIR|IMAGE", shell_complete=complete_traced)
def export(config: Config, target: str) -> None:
    """Write the newest trace as a document, which lazyfs optimize --trace takes."""
    found = find_trace(config, open_cache(config), target)
    print_document(found.encode().decode())


def _facts(found: Trace) -> dict[str, Any]:
    return {
        "image": found.image,
        "manifest": found.manifest,
        "command": found.command,
        "precise": found.precise,
        "size": found.size,
        "pieces": len(found.touches),
    }


def _row(values: dict[str, Any]) -> dict[str, Any]:
    return {**values, "path": shown(values["path"])}


def find_trace(config: Config, cache: Cache, target: str) -> Trace:
    """The trace of a live mount, or the newest of an image; of these the precise ones go first.

    Raises:
        NotFound: there is none.
        LazyfsError: the mount does not answer, or the image cannot be resolved.
    """
    if Path(target).is_dir():
        states = MountStates(runtime_directory(os.environ))
        answer = states.ask(Path(os.fsdecode(resolve_mount_point(Path(target)))), "trace")
        return decode_trace(json.dumps(answer).encode())
    traces = kept_traces(cache, trio.run(_manifest, config, target))
    if not traces:
        raise NotFound(f"no trace of {target} is kept: mount it, read, and unmount it")
    return next((found for found in traces if found.precise), traces[0])


async def _manifest(config: Config, image: str) -> str:
    async with open_workshop(parse_image(image), config) as workshop:
        return (await workshop.resolve()).descriptor.digest
