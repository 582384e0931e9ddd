"""A layer that is there at once: what is read is fetched, verified and kept.

    read_nowait   all leaves present: one pread, inline
    read          else: missing leaves -> spans -> few ranges -> one worker thread each, which receives,
                  decompresses, verifies, writes and marks; readers of the same span share its landing

Nothing here is awaited between looking at what is under way and claiming the rest, so that every span is
fetched by one task; between processes the entry's span locks do the same.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

import trio

from indexer.errors import IndexerError
from indexer.spans import read_span
from indexer.toc import Extent, Span, SpanTable
from indexer.toc_codec import decompress_window
from lazyfs.cache.layer_entry import LayerEntry
from lazyfs.errors import LazyfsError, Unreachable
from lazyfs.image.plan import Fetch, plan_fetches, tail_pieces
from lazyfs.source.base import Blob

_log = logging.getLogger(__name__)

ReadWindow = Callable[[Span], bytes]
"""Gives a span's window as it lies in the windows file."""


@dataclass(frozen=True, slots=True)
class FetchSettings:
    """How missing spans are fetched.

    Attributes:
        timeout_s: seconds after which a fetch is given up.
        max_bytes: compressed bytes of one request.
        max_gap: compressed bytes between two wanted spans that are fetched rather than skipped.
    """

    timeout_s: float = 60.0
    max_bytes: int = 4 << 20
    max_gap: int = 32 << 10


@dataclass(frozen=True, slots=True)
class LayerStatistics:
    """Counts of one layer since it was opened.

    Attributes:
        hits: reads answered from the cache at once.
        misses: reads that waited for a fetch.
        bytes_served: uncompressed bytes given to readers.
        fetches: range requests planned.
        bytes_fetched: compressed bytes asked for by them.
        spans_fetched: spans they brought.
        failures: fetches that failed.
    """

    hits: int = 0
    misses: int = 0
    bytes_served: int = 0
    fetches: int = 0
    bytes_fetched: int = 0
    spans_fetched: int = 0
    failures: int = 0


class _Landing:
    """A span under way: whoever needs it waits here."""

    def __init__(self) -> None:
        self._landed = trio.Event()
        self._error: IndexerError | LazyfsError | None = None
        self.data: bytes | None = None

    def land(self, data: bytes | None, error: IndexerError | LazyfsError | None = None) -> None:
        self.data = data
        self._error = error
        self._landed.set()

    async def wait(self) -> bytes | None:
        """The span's bytes; None where another process has put them into the cache."""
        await self._landed.wait()
        if self._error is not None:
            raise self._error
        return self.data


class LazyLayer:
    """One layer's address space, read through the cache.

    Args:
        spans: how to enter the layer.
        extents: its tail.
        entry: its place in the cache.
        read_window: gives compressed windows; called on a worker thread.
        blob: the compressed bytes at their source.
        nursery: where fetches live; they may outlive the readers that asked.
        settings: how to fetch.
    """

    def __init__(
        self,
        *,
        spans: SpanTable,
        extents: Sequence[Extent],
        entry: LayerEntry,
        read_window: ReadWindow,
        blob: Blob,
        nursery: trio.Nursery,
        settings: FetchSettings,
    ) -> None:
        self._spans = spans
        self._extents = extents
        self._entry = entry
        self._read_window = read_window
        self._blob = blob
        self._nursery = nursery
        self._settings = settings
        self._end = spans.uncompressed_size
        self._under_way: dict[int, _Landing] = {}
        self._hits = self._misses = self._bytes_served = 0
        self._fetches = self._bytes_fetched = self._spans_fetched = self._failures = 0

    def __repr__(self) -> str:
        return f"<LazyLayer {self._entry!r}, {len(self._under_way)} spans under way>"

    def statistics(self) -> LayerStatistics:
        """Counts so far."""
        return LayerStatistics(
            hits=self._hits,
            misses=self._misses,
            bytes_served=self._bytes_served,
            fetches=self._fetches,
            bytes_fetched=self._bytes_fetched,
            spans_fetched=self._spans_fetched,
            failures=self._failures,
        )

    def sync(self) -> None:
        """Make what was fetched outlast a power cut. Blocks; for a worker thread."""
        self._entry.sync()

    def read_nowait(self, start: int, size: int) -> bytes | None:
        """Bytes [start, start + size) if all of them are local, else None."""
        data = self._local(start, size)
        if data is not None:
            self._hits += 1
            self._bytes_served += size
        return data

    async def read(self, start: int, size: int) -> bytes:
        """Bytes [start, start + size) of the address space.

        Raises:
            IndexerError: what came is damaged or not what the TOC promises, or the range leaves the layer.
            LazyfsError: it did not come.
        """
        data = self._local(start, size)
        if data is None:
            self._misses += 1
            data = await self._fetched(start, size)
        else:
            self._hits += 1
        self._bytes_served += size
        return data

    def _local(self, start: int, size: int) -> bytes | None:
        if size <= 0:
            return b""
        if start + size > self._end:
            return self._local_tail(start, size)
        if self._entry.has(*self._spans.leaf_range(start, start + size)):
            return self._entry.read(start, size)
        return None

    def _local_tail(self, start: int, size: int) -> bytes | None:
        pieces = []
        for piece in self._stream_pieces(start, start + size):
            data = bytes(piece[1]) if piece[0] is None else self._local(piece[0], piece[1])
            if data is None:
                return None
            pieces.append(data)
        return b"".join(pieces)

    def _stream_pieces(self, start: int, end: int) -> list[tuple[int | None, int]]:
        """[start, end) as parts of the stream (its offset) and zeros (None)."""
        pieces: list[tuple[int | None, int]] = []
        if start < self._end:
            pieces.append((start, self._end - start))
            start = self._end
        pieces.extend(tail_pieces(self._extents, start, end))
        return pieces

    async def _fetched(self, start: int, size: int) -> bytes:
        if start + size <= self._end:
            return await self._fetched_stream(start, start + size)
        pieces = []
        for at, length in self._stream_pieces(start, start + size):
            pieces.append(bytes(length) if at is None else await self._fetched_stream(at, at + length))
        return b"".join(pieces)

    async def _fetched_stream(self, start: int, end: int) -> bytes:
        landings = self._claim(start, end)
        landed = {number: await landing.wait() for number, landing in landings.items()}
        data = self._local(start, end - start)
        return data if data is not None else self._assemble(start, end, landed)

    def _assemble(self, start: int, end: int, landed: dict[int, bytes | None]) -> bytes:
        """The range when the cache took nothing: from the spans that just landed, and the cache."""
        pieces = []
        for number in self._spans.covering(start, end):
            span = self._spans[number]
            first, last = max(start, span.uncompressed_start), min(end, span.uncompressed_end)
            data = landed.get(number)
            if data is not None:
                pieces.append(data[first - span.uncompressed_start : last - span.uncompressed_start])
            else:
                pieces.append(self._entry.read(first, last - first))
        return b"".join(pieces)

    def _claim(self, start: int, end: int) -> dict[int, _Landing]:
        """The landings of all spans of [start, end) that are not local; starts those not under way."""
        numbers = [n for n in self._spans.covering(start, end) if not self._is_local(n, start, end)]
        mine = [n for n in numbers if n not in self._under_way]
        for number in mine:
            self._under_way[number] = _Landing()
        settings = self._settings
        wanted = [self._spans[n] for n in mine]
        for fetch in plan_fetches(wanted, max_bytes=settings.max_bytes, max_gap=settings.max_gap):
            self._nursery.start_soon(self._land, fetch)
        return {n: self._under_way[n] for n in numbers}

    def _is_local(self, number: int, start: int, end: int) -> bool:
        span = self._spans[number]
        first, last = max(start, span.uncompressed_start), min(end, span.uncompressed_end)
        return self._entry.has(*self._spans.leaf_range(first, last))

    async def _land(self, fetch: Fetch) -> None:
        """Bring the spans of `fetch`; whatever happens, their landings are told."""
        landed: dict[int, bytes] = {}
        error: IndexerError | LazyfsError | None = Unreachable("the fetch was given up")
        try:
            with trio.fail_after(self._settings.timeout_s):
                landed = await self._fetch(fetch)
            error = None
        except trio.TooSlowError:
            error = Unreachable(f"no answer within {self._settings.timeout_s:g} s")
        except (IndexerError, LazyfsError) as raised:
            error = raised
        except Exception:  # noqa: BLE001  # a bug must reach the readers, not end the mount
            _log.exception("a bug while fetching spans of %r", self)
            error = LazyfsError("a bug; the log has its trace")
        finally:
            if error is not None:
                self._failures += 1
                at = fetch.compressed_start
                _log.error("fetching %d spans from byte %d failed: %s", len(fetch.spans), at, error)
            for span in fetch.spans:
                self._under_way.pop(span.number).land(landed.get(span.number), error)

    async def _fetch(self, fetch: Fetch) -> dict[int, bytes]:
        async with AsyncExitStack() as locks:
            for span in fetch.spans:  # ascending, as everybody locks them
                await locks.enter_async_context(self._entry.span_lock(span.number))
            missing = [s for s in fetch.spans if not self._entry.has(s.first_leaf, s.end_leaf)]
            if not missing:
                return {}
            start, end = missing[0].compressed_start, missing[-1].compressed_end
            self._fetches += 1
            self._bytes_fetched += end - start
            self._spans_fetched += len(missing)
            return await self._blob.fetch(start, end, partial(self._unpack, missing, start))

    def _unpack(self, spans: Sequence[Span], start: int, data: bytes | memoryview) -> dict[int, bytes]:
        """On the thread that received `data`: decompress, verify, write, mark."""
        view = memoryview(data)
        unpacked = {}
        for span in spans:
            window = decompress_window(self._read_window(span))
            compressed = view[span.compressed_start - start : span.compressed_end - start]
            output = read_span(span, compressed, window)
            self._entry.put(span.uncompressed_start, span.first_leaf, output)
            unpacked[span.number] = output
        return unpacked
