"""Verifies the indexes of an image that a mount would use, and remembers what came of it."""

import time
from collections.abc import Sequence
from enum import Enum

import trio
from msgspec import Struct

from lazyfs.cache.cache import Cache
from lazyfs.cache.quarantine import Note
from lazyfs.image.auditing.audit import Audit
from lazyfs.image.auditing.verify import From, Verdict, Verifier
from lazyfs.image.indexes.gathering import IndexFinder
from lazyfs.image.indexes.indexing import IndexedLayer, Indexer, Progress
from lazyfs.image.resolve import ResolvedImage
from lazyfs.oci.config import ImageLayer
from lazyfs.source.base import Source


class Origin(Enum):
    """Where an index came from."""

    MADE_HERE = "made here"
    FOUND = "found elsewhere"
    MADE_NOW = "made now"


class LayerReport(Struct, frozen=True):
    """What is known of one layer's index.

    Attributes:
        digest: of the layer's blob.
        toc_digest: of the table of contents.
        origin: where that came from.
        verdict: what the layer showed.
    """

    digest: str
    toc_digest: str
    origin: Origin
    verdict: Verdict

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return self.verdict.passed


async def verify_image(
    resolved: ResolvedImage,
    source: Source,
    indexer: Indexer,
    cache: Cache,
    finders: Sequence[IndexFinder],
    progress: Progress,
    *,
    pull: bool,
) -> list[LayerReport]:
    """Verify the index of each layer, one after the other, the lowest first.

    An index found elsewhere that lies is put into quarantine; one that does not counts as audited from now
    on. A layer without an index gets one.

    Raises:
        IndexerError: a layer is damaged, too large, or not what the manifest promises.
        LazyfsError: a layer cannot be had.
    """
    layers = {layer.descriptor.digest: layer for layer in resolved.layers}
    here = {digest: indexer.find(layer.descriptor) for digest, layer in layers.items()}
    made = {digest: found for digest, found in here.items() if found is not None}
    found: dict[str, IndexedLayer] = {}
    for finder in finders:
        found |= await finder.find(resolved, layers.keys() - made.keys() - found.keys())
    verifier = Verifier(cache, indexer.limits, progress, pull=pull)
    reports = []
    for digest, layer in layers.items():
        blob = source.blob(layer.descriptor)
        indexed = made.get(digest) or found.get(digest)
        if indexed is None:
            reports.append(_report(layer, await indexer.ensure(layer.descriptor, blob)))
            continue
        verdict = await verifier.verify(layer, indexed, blob)
        if digest in found:
            await trio.to_thread.run_sync(_remember, cache, indexed, verdict)
        origin = Origin.FOUND if digest in found else Origin.MADE_HERE
        reports.append(LayerReport(digest, indexed.head.digest, origin, verdict))
    return reports


def _report(layer: ImageLayer, indexed: IndexedLayer) -> LayerReport:
    """What making an index showed: the layer had its digest, and its content this diffID."""
    actual = indexed.head.header.diff_id
    lie = f"the layer's content is {actual}; its diffID is {layer.diff_id}"
    verdict = Verdict(From.SOURCE, Audit(() if actual == layer.diff_id else (lie,)))
    return LayerReport(layer.descriptor.digest, indexed.head.digest, Origin.MADE_NOW, verdict)


def _remember(cache: Cache, indexed: IndexedLayer, verdict: Verdict) -> None:
    header, toc_digest = indexed.head.header, indexed.head.digest
    if verdict.audit.lies:
        cache.quarantine.add(Note(header.layer_digest, toc_digest, verdict.audit.lies, time.time()))
    elif verdict.passed:
        leaves = indexed.head.spans().leaves
        with cache.layer(header.layer_digest, toc_digest, header.device_size, leaves) as entry:
            entry.record_audit()
