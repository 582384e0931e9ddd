"""index, inspect."""

import json
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

import click
from msgspec.structs import replace

from lazyfs.assembly import Workshop, place_to_publish
from lazyfs.cli.completing import complete_image
from lazyfs.cli.options import configured
from lazyfs.cli.output import human, print_json, write_line
from lazyfs.cli.running import with_workshop
from lazyfs.config import Config
from lazyfs.image.boot.packs import FoundPack
from lazyfs.image.explain import why_lazy
from lazyfs.image.indexes.foreign import announces_table
from lazyfs.image.indexes.gathering import indexed_tree
from lazyfs.image.indexes.indexing import IndexedLayer
from lazyfs.image.indexes.publish import publish_index
from lazyfs.image.resolve import ResolvedImage
from lazyfs.oci.config import ImageConfig, chain_ids
from lazyfs.oci.image_name import parse_image
from lazyfs.source.push.artifact import Publisher


@click.command()
@configured
@click.argument("image", shell_complete=complete_image)
@click.option("--push", is_flag=True, help="Publish the index beside the image, or in --index-repo.")
@click.option("--all-platforms", is_flag=True, help="Of every image in a multi-platform index, not only one.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def index(config: Config, image: str, push: bool, all_platforms: bool, as_json: bool) -> None:
    """Build and store the index of IMAGE, so that every mount of it is immediate.

    Layers that have an index already cost nothing. What is pulled for it stays in the cache.

    With --push others find it: their mounts are immediate too, and fetch only what is read. What is published
    was made here: indexes found elsewhere do not count then. Publishing again changes nothing.
    """
    if push:
        place_to_publish(config, parse_image(image))
        config = replace(config, index=config.index if config.index == "none" else "local")

    async def work(workshop: Workshop) -> None:
        images = await workshop.resolve_all() if all_platforms else [await workshop.resolve()]
        async with AsyncExitStack() as stack:
            publisher = await stack.enter_async_context(workshop.open_publisher()) if push else None
            facts = [await index_image(workshop, resolved, publisher) for resolved in images]
        if as_json:
            print_json(facts if all_platforms else facts[0])
            return
        for one in facts:
            for row in one["layers"]:
                write_line(f"{row['digest']}  {row['toc_digest']}  {row['spans']} spans")
            if push:
                done = "published" if one["published"]["new"] else "already published"
                write_line(f"{one['digest']}  {one['published']['digest']}  {done}")

    with_workshop(config, image, work)


async def index_image(
    workshop: Workshop, resolved: ResolvedImage, publisher: Publisher | None
) -> dict[str, Any]:
    """Index one image, and publish that if there is a publisher; what is to be told of it."""
    indexed, _ = await indexed_tree(
        resolved, workshop.source, workshop.indexer, workshop.cache, workshop.finders
    )
    rows = [_index_facts(layer.descriptor.digest, indexed) for layer in resolved.layers]
    facts: dict[str, Any] = {
        "image": resolved.name,
        "digest": resolved.descriptor.digest,
        "platform": str(resolved.config.platform),
        "layers": rows,
    }
    if publisher is not None:
        digest, new = await publish_index(resolved, indexed, workshop.indexer, publisher)
        facts["published"] = {"digest": digest, "new": new}
    return facts


def _index_facts(digest: str, indexed: dict[str, IndexedLayer]) -> dict[str, Any]:
    found = indexed[digest]
    return {
        "digest": digest,
        **_origin(found),
        "spans": len(found.head.spans()),
        "windows_bytes": found.head.spans().windows_size,
        "uncompressed_bytes": found.head.header.uncompressed_size,
    }


@click.command()
@configured
@click.argument("image", shell_complete=complete_image)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(config: Config, image: str, as_json: bool) -> None:
    """Show IMAGE's manifest, configuration, history and layers, and how lazyfs would read and start it.

    An index or boot pack is one that is here, or that a mount would find. Pulls no layer.
    """

    async def work(workshop: Workshop) -> None:
        resolved = await workshop.resolve()
        pack = await workshop.boot_packs.find(resolved, ask=True) if workshop.config.boot_pack else None
        facts = _image_facts(resolved, await workshop.known_indexes(resolved), pack)
        if as_json:
            print_json(facts)
        else:
            _print_image(facts, resolved.config)

    with_workshop(config, image, work)


def _image_facts(
    resolved: ResolvedImage, indexed: Mapping[str, IndexedLayer], pack: FoundPack | None
) -> dict[str, Any]:
    chain = chain_ids([layer.diff_id for layer in resolved.layers])
    layers = []
    for layer, chain_id in zip(resolved.layers, chain, strict=True):
        found = indexed.get(layer.descriptor.digest)
        layers.append(
            {
                "digest": layer.descriptor.digest,
                "size": layer.descriptor.size,
                "media_type": layer.descriptor.media_type,
                "diff_id": layer.diff_id,
                "chain_id": chain_id,
                "index": _origin(found) if found else None,
                "announces_table": announces_table(layer.descriptor),
            }
        )
    return {
        "image": resolved.name,
        "digest": resolved.descriptor.digest,
        "media_type": resolved.manifest.media_type,
        "platform": str(resolved.config.platform),
        "size": sum(layer.descriptor.size for layer in resolved.layers),
        "indexed": all(layer["index"] for layer in layers),
        "boot_pack": {"digest": pack.digest, "size": pack.blob.size, "where": pack.where} if pack else None,
        "layers": layers,
        "manifest": json.loads(resolved.raw_manifest),
        "config": json.loads(resolved.raw_config),
    }


def _origin(found: IndexedLayer) -> dict[str, str]:
    return {
        "toc_digest": found.head.digest,
        "kind": found.kind.value,
        "vouched_by": found.vouched_by.value,
        "why": why_lazy(found),
    }


def _print_image(facts: dict[str, Any], config: ImageConfig) -> None:
    pack = facts["boot_pack"]
    for name, value in (
        ("image", facts["image"]),
        ("digest", facts["digest"]),
        ("platform", facts["platform"]),
        ("created", config.created or "not said"),
        ("size", f"{facts['size']} bytes in {len(facts['layers'])} layers"),
        ("entrypoint", _words(*config.entrypoint) or "none"),
        ("command", _words(*config.cmd) or "none"),
        ("user", config.user or "root"),
        ("working dir", config.working_dir or "/"),
        ("indexed", _indexed(facts["layers"])),
        (
            "boot pack",
            f"{human(pack['size'])}, {pack['where']}" if pack else "none; lazyfs optimize makes it",
        ),
    ):
        write_line(f"{name:12}{value}")
    write_line("layers")
    for layer in facts["layers"]:
        mark = layer["index"]["why"] if layer["index"] else "-"
        write_line(f"  {layer['digest']}  {layer['size']:>12}  {mark}")
    write_line("history")
    for step in config.history:
        empty = " (no layer)" if step.empty_layer else ""
        write_line(f"  {_words(step.created_by)[:100]}{empty}")


def _indexed(layers: Sequence[Mapping[str, Any]]) -> str:
    known = [bool(layer["index"]) for layer in layers]
    if all(known):
        return "yes: mounts are immediate"
    left = "in part; the first mount, or lazyfs index, does the rest"
    return left if any(known) else "no; the first mount, or lazyfs index, does it"


def _words(*texts: str) -> str:
    return " ".join(" ".join(texts).split())
