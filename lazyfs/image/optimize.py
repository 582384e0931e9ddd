"""From recorded starts to a boot pack that is kept, and published: what `lazyfs optimize` does."""

import logging
from collections.abc import Sequence

import trio
from msgspec import Struct

from indexer.boot_pack import HEADER_SIZE, PackHead, Run, decode_pack_head, head_size
from indexer.digest import sha256_digest
from indexer.errors import FormatError, IndexerError
from lazyfs.errors import NotFound
from lazyfs.image.boot.pack_artifact import build_pack_artifact
from lazyfs.image.boot.packs import BootPacks, FoundPack
from lazyfs.image.boot.trace import Trace
from lazyfs.image.image import Image
from lazyfs.image.pack_maker import PackMaker, merge, runs_of_pack, runs_of_trace
from lazyfs.source.push.artifact import Publisher

_log = logging.getLogger(__name__)


class MadePack(Struct, frozen=True):
    """A pack that was made.

    Attributes:
        digest: of its bytes.
        size: of them.
        leaves: how many leaves it holds.
        added: how many of them no pack had before.
        data: its bytes.
        published: the published pack that it adds to, if there is one.
    """

    digest: str
    size: int
    leaves: int
    added: int
    data: bytes
    published: FoundPack | None


async def make_pack(
    image: Image, packs: BootPacks, traces: Sequence[Trace], *, publish: bool, replace: bool
) -> MadePack:
    """Make the pack of an image from traces and the packs that it has, and keep it.

    Args:
        image: open for recording.
        packs: where its packs are.
        traces: what starts of it touched.
        publish: whether it is to be published: then the published one is added to.
        replace: whether to begin anew.

    Raises:
        FormatError: a trace is of another image, or was recorded with other indexes.
        Unsupported: the image's indexes cannot prove single leaves.
        IndexerError, LazyfsError: content that is missing cannot be had, or there is no room.
    """
    manifest = image.resolved.descriptor.digest
    if any(trace.manifest != manifest for trace in traces):
        raise FormatError("a trace of another image")
    maker = PackMaker(image)
    published = await packs.published(image.resolved) if publish and not replace else None
    kept = None if replace else await trio.to_thread.run_sync(packs.kept, manifest)
    orders: list[list[Run]] = []
    for found in (published, kept):
        if found is not None:
            try:
                orders.append(runs_of_pack(await head_of(found), maker.layers, maker.tables))
            except (IndexerError, NotFound) as error:
                _log.warning("the boot pack %s is not added to: %s", found.where, error)
    had = _count(merge(orders)) if orders else 0
    orders += [runs_of_trace(trace, maker.layers, maker.tables) for trace in traces]
    if not any(orders):
        raise FormatError("nothing was read: there is nothing to make a boot pack of")
    runs = merge(orders)
    data = await maker.make(runs)
    await trio.to_thread.run_sync(packs.keep, manifest, data)
    return MadePack(
        digest=sha256_digest(data),
        size=len(data),
        leaves=_count(runs),
        added=_count(runs) - had,
        data=data,
        published=published,
    )


def _count(runs: Sequence[Run]) -> int:
    return sum(run.end_leaf - run.first_leaf for run in runs)


async def head_of(found: FoundPack) -> PackHead:
    """The head of a pack, fetched if it is not here.

    Raises:
        IndexerError: it is damaged.
        LazyfsError: it cannot be had.
    """
    if found.head is not None:
        return found.head
    blob = found.blob
    start = await blob.fetch(0, min(HEADER_SIZE, blob.size), bytes)
    return decode_pack_head(await blob.fetch(0, min(head_size(start), blob.size), bytes))


async def publish_pack(image: Image, pack: MadePack, publisher: Publisher) -> tuple[str, bool]:
    """Store a pack beside its image.

    Returns:
        Digest of the artifact's manifest, and whether anything had to be stored.

    Raises:
        SourceError: it cannot be stored.
    """
    before = pack.published
    if before is not None and before.digest == pack.digest:
        generation = before.generation
    else:
        generation = (before.generation if before else 0) + 1
    artifact = build_pack_artifact(image.resolved.descriptor, pack.data, generation)
    return artifact.descriptor.digest, await publisher.publish(artifact)
