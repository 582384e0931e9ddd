"""optimize: a boot pack from what starts of an image read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import trio

from lazyfs.assembly import Workshop, opened
from lazyfs.cli.options import PATH, configured
from lazyfs.cli.output import human, print_json, write_line
from lazyfs.cli.running import with_workshop
from lazyfs.config import Config
from lazyfs.errors import NotFound
from lazyfs.image.image import Image
from lazyfs.image.optimize import make_pack, publish_pack
from lazyfs.image.recording import kept_traces
from lazyfs.image.trace import MAX_TRACE, Trace, decode_trace


@click.command()
@configured
@click.argument("image")
@click.option("--trace", "traces", type=PATH, multiple=True, metavar="FILE", help="A trace; may be repeated.")
@click.option("--push", is_flag=True, help="Publish the pack beside the image, or in --index-repo.")
@click.option("--replace", is_flag=True, help="Begin anew; add to no pack that is there.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def optimize(
    config: Config, image: str, traces: tuple[Path, ...], push: bool, replace: bool, as_json: bool
) -> None:
    """Make the boot pack of IMAGE: all that its start reads, in the order in which it is read.

    The next cold mount anywhere streams it while the container is already starting. Without --trace, what
    mounts made with --record have read is taken. What is added to a pack joins what it has already.
    """

    async def work(workshop: Workshop) -> None:
        given = [_read(path) for path in traces]
        async with opened(workshop, record=True) as opened_image:
            facts = await _optimize(workshop, opened_image, given, push=push, replace=replace)
        if as_json:
            print_json(facts)
            return
        write_line(f"{facts['pack']}  {human(facts['size'])}, {facts['leaves']} leaves, {facts['added']} new")
        if push:
            published = facts["published"]
            write_line(f"{published['digest']}  {'published' if published['new'] else 'already published'}")

    with_workshop(config, image, work)


def _read(path: Path) -> Trace:
    with path.open("rb") as file:
        return decode_trace(file.read(MAX_TRACE + 1))


async def _optimize(
    workshop: Workshop, image: Image, traces: Sequence[Trace], *, push: bool, replace: bool
) -> dict[str, Any]:
    manifest = image.resolved.descriptor.digest
    if not traces:
        kept = await trio.to_thread.run_sync(kept_traces, workshop.cache, manifest)
        traces = [trace for trace in kept if trace.precise]
    if not traces:
        raise NotFound(f"no start of {image.resolved.name} was recorded: mount it with --record first")
    pack = await make_pack(image, workshop.boot_packs, traces, publish=push, replace=replace)
    facts: dict[str, Any] = {
        "image": image.resolved.name,
        "traces": len(traces),
        "pack": pack.digest,
        "size": pack.size,
        "leaves": pack.leaves,
        "added": pack.added,
    }
    if push:
        async with workshop.open_publisher() as publisher:
            digest, new = await publish_pack(image, pack, publisher)
        facts["published"] = {"digest": digest, "new": new}
    return facts
