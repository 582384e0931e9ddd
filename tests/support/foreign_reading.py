"""Foreign layers as a fetcher reads them, without one."""

from hashlib import sha256

from indexer.foreign.embedded import TAIL_SIZE, Promise, find_toc, read_toc
from indexer.foreign.facts import BlobFacts
from indexer.spans.by_compression import read_spans
from indexer.spans.scan import Limits
from indexer.toc import Toc
from tests.support.foreign_layers import STARGZ, ForeignLayer


def facts_of(layer: ForeignLayer) -> BlobFacts:
    return BlobFacts("sha256:" + sha256(layer.blob).hexdigest(), len(layer.blob))


def toc_of(layer: ForeignLayer, promise: Promise | None = None, limits: Limits | None = None) -> Toc:
    place = find_toc(layer.blob[-TAIL_SIZE:], len(layer.blob))
    assert place
    promise = promise or Promise(json=layer.annotations.get(STARGZ, ""))
    region = layer.blob[place.start : place.end]
    return read_toc(region, place, promise, facts_of(layer), limits or Limits())


def address_space(toc: Toc, blob: bytes) -> bytes:
    """Everything, read as a fetcher does it: what shares an entry at once."""
    pieces, number = [], 0
    while number < len(toc.spans):
        group = [toc.spans[other] for other in toc.spans.sharing_entry(number)]
        data = blob[group[0].compressed_start : max(span.compressed_end for span in group)]
        pieces += read_spans(group, data, b"")
        number = group[-1].number + 1
    return b"".join(pieces)
