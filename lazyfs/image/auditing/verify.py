"""Verifies the index of a layer against the layer itself: all of it, from the source or from the cache."""

import os
from collections.abc import Iterator
from enum import Enum
from functools import partial
from hashlib import sha256
from tempfile import TemporaryFile
from typing import Final

import trio
from msgspec import Struct

from indexer.errors import DigestMismatch, FormatError, LimitExceeded
from indexer.spans.scan import Limits
from indexer.toc import AddressSpace
from indexer.toc_codec import TocHead
from lazyfs.cache.cache import Cache
from lazyfs.cache.files import cache_errors
from lazyfs.cache.layer_entry import LayerEntry
from lazyfs.image.auditing.audit import Audit, audit_stream
from lazyfs.image.auditing.packed_audit import audit_packed
from lazyfs.image.auditing.span_stream import span_stream
from lazyfs.image.indexes.indexing import IndexedLayer, Progress
from lazyfs.oci.config import ImageLayer
from lazyfs.source.base import Blob

_PIECE: Final = 1 << 20


class From(Enum):
    """Where the layer's bytes came from."""

    CACHE = "cache"
    SOURCE = "source"


class Verdict(Struct, frozen=True):
    """What verifying a layer's index gave.

    Attributes:
        bytes_from: where the layer's bytes came from.
        audit: what they showed.
    """

    bytes_from: From
    audit: Audit

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.audit.lies and not self.audit.wrong_spans


class Verifier:
    """Verifies indexes.

    Args:
        cache: holds layers, and takes what is pulled until it is verified.
        limits: bounds against bombs.
        progress: told of layers under way.
        pull: pull layers also where the cache holds all of them.
    """

    def __init__(self, cache: Cache, limits: Limits, progress: Progress, *, pull: bool) -> None:
        self._cache = cache
        self._limits = limits
        self._progress = progress
        self._pull = pull

    async def verify(self, layer: ImageLayer, indexed: IndexedLayer, blob: Blob) -> Verdict:
        """Compare everything that an index says of a layer with the layer.

        Raises:
            DigestMismatch: what the source gives is another layer, or other windows.
            LimitExceeded: the layer is too large to be compared.
            LazyfsError: it gives nothing.
            CacheError: there is no room for the layer.
        """
        head = indexed.head
        if not self._pull and head.header.address_space is AddressSpace.TAR:
            audit = await trio.to_thread.run_sync(self._cached, head, layer.diff_id)
            if audit is not None:
                return Verdict(From.CACHE, audit)
        return Verdict(From.SOURCE, await self._pulled(layer, indexed, blob))

    def _cached(self, head: TocHead, diff_id: str) -> Audit | None:
        """The audit of a layer that is wholly in the cache; None if it is not."""
        header = head.header
        info = self._cache.info(header.layer_digest, head.digest)
        if info is None or info.present < info.leaves:
            return None
        with self._cache.layer(header.layer_digest, head.digest, header.device_size, info.leaves) as entry:
            evictions = entry.evictions
            if not entry.complete:
                return None
            audit = audit_stream(head, diff_id, cached_pieces(entry, header.uncompressed_size))
            # What was evicted meanwhile read as zeros: that says nothing of the table.
            return audit if entry.evictions == evictions else None

    async def _pulled(self, layer: ImageLayer, indexed: IndexedLayer, blob: Blob) -> Audit:
        descriptor, windows = layer.descriptor, await _windows(indexed)
        with cache_errors("keep a layer for a while"), TemporaryFile(dir=self._cache.root / "tmp") as file:
            digest, done = sha256(), 0

            def consume(piece: memoryview) -> None:
                nonlocal done
                digest.update(piece)
                file.write(piece)
                done += len(piece)
                self._progress(descriptor.digest, done, descriptor.size)

            await blob.pull(consume)
            file.flush()
            if f"sha256:{digest.hexdigest()}" != descriptor.digest:
                raise DigestMismatch("layer", descriptor.digest, f"sha256:{digest.hexdigest()}")
            return await trio.to_thread.run_sync(
                _audit_file, layer, indexed.head, file.fileno(), windows, self._limits
            )


async def _windows(indexed: IndexedLayer) -> bytes | memoryview:
    """All windows of an index, checked and kept."""
    remote = indexed.remote_windows
    if remote is None:
        return indexed.windows
    data = await remote.fetch_whole()
    await trio.to_thread.run_sync(remote.keep, data)
    return data


def _audit_file(
    layer: ImageLayer, head: TocHead, file: int, windows: bytes | memoryview, limits: Limits
) -> Audit:
    check = trio.from_thread.check_cancelled
    stream = partial(span_stream, head.spans(), file, layer.descriptor.size, windows, check)
    try:
        if head.header.address_space is AddressSpace.PACKED:
            return audit_packed(head, layer, file, stream, check, limits)
        return audit_stream(head, layer.diff_id, stream())
    except LimitExceeded:  # of the layer itself: no lie of the table
        raise
    except FormatError as error:
        return Audit((error.what,))


def cached_pieces(entry: LayerEntry, size: int) -> Iterator[bytes]:
    """The first `size` bytes of an entry that is complete, past what the page cache thinks of them."""
    os.posix_fadvise(entry.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    for start in range(0, size, _PIECE):
        trio.from_thread.check_cancelled()
        yield entry.read(start, min(_PIECE, size - start))
