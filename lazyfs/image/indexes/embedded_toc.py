"""Tables of contents inside layers, eStargz and zstd:chunked: what manifests say of them, and fetching them.

Annotations of a layer's descriptor (stargz-snapshotter, estargz.md; containers/storage, zstd-chunked.md):

    containerd.io/snapshot/stargz/toc.digest                     digest of the JSON
    io.github.containers.zstd-chunked.manifest-checksum          digest of its compressed bytes
    io.github.containers.zstd-chunked.manifest-position          where these are: no footer need be read
    io.containers.zstd-chunked.manifest-checksum and -position   the same, as containers/storage wrote it
                                                                 before 1.44, and as stargz-snapshotter does
"""

from collections.abc import Mapping
from functools import partial
from typing import Final, NamedTuple

import trio

from indexer.errors import Unsupported
from indexer.foreign.embedded import TAIL_SIZE, Promise, find_toc, read_toc
from indexer.foreign.facts import BlobFacts
from indexer.foreign.place import TocPlace
from indexer.foreign.zstd_chunked import place_from_annotation
from indexer.spans.scan import Limits
from indexer.toc import Toc
from lazyfs.oci.descriptor import Descriptor, readable_digest
from lazyfs.source.base import Blob

STARGZ_KEY: Final = "containerd.io/snapshot/stargz/toc.digest"
CHUNKED_PREFIXES: Final = ("io.github.containers.zstd-chunked.", "io.containers.zstd-chunked.")

_LEAST_TAIL: Final = 64 << 10
_MOST_TAIL: Final = 4 << 20


class Claim(NamedTuple):
    """What a manifest says of the table in a layer.

    Attributes:
        promise: its digests, at least one.
        place: where it is; None where only the blob's footer tells.
    """

    promise: Promise
    place: TocPlace | None

    @property
    def digest(self) -> str:
        """One of the digests: a name for what the table says."""
        return self.promise.json or self.promise.stored


def claim_of(layer: Descriptor) -> Claim | None:
    """What a layer's descriptor says of a table inside; None if nothing.

    Raises:
        IndexerError: what it says makes no sense, or is of a kind that is not read.
    """
    notes = layer.annotations
    json_digest = readable_digest(notes[STARGZ_KEY]) if STARGZ_KEY in notes else ""
    for prefix in CHUNKED_PREFIXES:
        found = _chunked_claim(notes, prefix, layer.size)
        if found is not None:
            digest, place = found
            return Claim(Promise(json=json_digest, stored=digest), place)
    return Claim(Promise(json=json_digest), None) if json_digest else None


def _chunked_claim(notes: Mapping[str, str], prefix: str, size: int) -> tuple[str, TocPlace] | None:
    checksum, position = notes.get(f"{prefix}manifest-checksum"), notes.get(f"{prefix}manifest-position")
    if checksum is None or position is None:
        return None
    return readable_digest(checksum), place_from_annotation(position, size)


async def fetch_claimed(layer: Descriptor, blob: Blob, claim: Claim, limits: Limits) -> Toc:
    """The Toc of a layer by the table that its manifest vouches for, by one or two range requests.

    Raises:
        IndexerError: it is not as the manifest says, not in the blob, or cannot be used.
        LazyfsError: it cannot be had.
    """
    tail_size = min(max(_LEAST_TAIL, layer.size // 100), _MOST_TAIL)
    toc = await _fetch(layer, blob, claim.promise, claim.place, tail_size, limits)
    if toc is None:  # eStargz may keep it in an image of its own
        raise Unsupported("the manifest names a table of contents that is not in the layer")
    return toc


async def fetch_unclaimed(layer: Descriptor, blob: Blob, limits: Limits) -> Toc | None:
    """The Toc of a layer by a table that nobody vouches for, if there is one. Raises as `fetch_claimed`."""
    return await _fetch(layer, blob, Promise(), None, TAIL_SIZE, limits)


async def _fetch(
    layer: Descriptor, blob: Blob, promise: Promise, place: TocPlace | None, tail_size: int, limits: Limits
) -> Toc | None:
    tail = b""
    if place is None:
        tail = await blob.fetch(max(layer.size - tail_size, 0), layer.size, bytes)
        place = find_toc(tail, layer.size)
        if place is None:
            return None
    facts = BlobFacts(layer.digest, layer.size)
    parse = partial(read_toc, place=place, promise=promise, facts=facts, limits=limits)
    tail_start = layer.size - len(tail)
    if place.start >= tail_start:
        region = tail[place.start - tail_start : place.end - tail_start]
        return await trio.to_thread.run_sync(parse, region)
    head_end = min(place.end, tail_start)
    rest = tail[: max(place.end - tail_start, 0)]
    return await blob.fetch(place.start, head_end, lambda data: parse(bytes(data) + rest))
