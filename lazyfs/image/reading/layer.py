"""A layer that is there at once: what is read is fetched, verified and kept.

read_nowait   all leaves present: one pread, inline
read          else: missing leaves -> spans, which the fetcher brings
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import Final, Protocol

import trio
from msgspec import Struct

from indexer.toc import Extent, SpanTable
from lazyfs.cache.layer_entry import LayerEntry
from lazyfs.errors import CacheError, NotTrusted
from lazyfs.image.reading.beside import Beside, absent_spans
from lazyfs.image.reading.fetcher import FetchStatistics, SpanFetcher
from lazyfs.image.reading.landing import Landing
from lazyfs.image.reading.plan import Piece, Run, tail_pieces, tail_runs
from lazyfs.image.reading.readahead import ReadAhead, ReadAheadSettings
from lazyfs.image.reading.spare import SpareSpans
from lazyfs.image.reading.traffic import Purpose
from lazyfs.image.reading.waits import Wait, Waited, waiting

_log = logging.getLogger(__name__)

_ATTEMPTS: Final = 10


class _Evicted(Exception):
    """Content that was here, or was brought by another process, went away before it was read."""


class LayerStatistics(Struct, frozen=True):
    """Counts of one layer since it was opened.

    Attributes:
        hits: reads answered from the cache at once.
        misses: reads that waited for a fetch.
        bytes_served: uncompressed bytes asked for by readers.
        fetched: what the fetcher did.
    """

    hits: int
    misses: int
    bytes_served: int
    fetched: FetchStatistics


Watch = Callable[[int, int], None]
"""Told of bytes [start, end) of a layer that are read, which are not empty."""


class Coming(Protocol):
    """What comes of a layer without being asked for by its readers: a boot pack."""

    @property
    def is_over(self) -> bool:
        """Whether nothing comes any more."""

    @property
    def is_vain(self) -> bool:
        """Whether nothing comes any more, and nothing that was right has."""

    async def settle(self) -> None:
        """Wait until it is known what comes, but not for long."""

    def promised(self, missing: Sequence[tuple[int, int]]) -> int | None:
        """With which part all of these ranges of leaves will have come; None if not all of them will."""

    def touches(self, first_leaf: int, end_leaf: int, *, ever: bool) -> bool:
        """Whether some of these leaves are still to come; with `ever`, or have come."""

    async def wait(self, chunk: int, apart: int) -> None:
        """Wait for a part, as long as that is no slower than a request for `apart` bytes."""


class LazyLayer:
    """One layer's address space, read through the cache.

    Args:
        spans: how to enter the layer.
        extents: its tail.
        entry: its place in the cache.
        fetcher: brings what is not there.
        read_ahead: how far to run ahead of sequential readers.
        beside: knows what comes with what is waited for; None if nothing is to be brought in vain.
        waited: told of reads that had to wait, in vain, too.

    Attributes:
        much_read: set once readers have wanted so much that they are likely to want all.
    """

    def __init__(
        self,
        spans: SpanTable,
        extents: Sequence[Extent],
        entry: LayerEntry,
        fetcher: SpanFetcher,
        read_ahead: ReadAheadSettings,
        beside: Beside | None = None,
        waited: Waited | None = None,
    ) -> None:
        self.much_read = trio.Event()
        self._beside = beside
        self._waited = waited
        self._spans = spans
        self._extents = extents
        self._entry = entry
        self._fetcher = fetcher
        self._end = spans.uncompressed_size
        self._ahead = ReadAhead(read_ahead)
        self._complete = entry.complete
        self._condemned = ""
        self._spare = SpareSpans()
        self._coming: list[Coming] = []
        self._watchers: list[Watch] = []
        self._hits = self._misses = self._bytes_served = 0

    def __repr__(self) -> str:
        return f"<LazyLayer {self._fetcher!r}>"

    def statistics(self) -> LayerStatistics:
        """Counts so far."""
        return LayerStatistics(self._hits, self._misses, self._bytes_served, self._fetcher.statistics())

    def sync(self) -> None:
        """Make what was fetched outlast a power cut. Blocks; for a worker thread.

        What the disk does not take is fetched again when it is read; that is logged.
        """
        try:
            self._entry.sync()
        except CacheError as error:
            _log.warning("%s", error)

    @property
    def entry(self) -> LayerEntry:
        """Its place in the cache."""
        return self._entry

    @property
    def spans(self) -> SpanTable:
        """How it is entered."""
        return self._spans

    @property
    def size(self) -> int:
        """Bytes of its stream, without the tail."""
        return self._end

    @property
    def extents(self) -> Sequence[Extent]:
        """Its tail."""
        return self._extents

    def follow(self, coming: Coming) -> None:
        """Something of it comes by itself; readers wait for that where it is no slower."""
        self._coming = [*(each for each in self._coming if not each.is_over), coming]

    def watch(self, watcher: Watch) -> None:
        """Tell somebody of every read, on the thread that answers all requests, until `unwatch`."""
        self._watchers.append(watcher)

    def unwatch(self, watcher: Watch) -> None:
        """Tell them no more."""
        self._watchers.remove(watcher)

    @property
    def landed(self) -> trio.Event:
        """Set once something more of it has come, or has failed to; from then on it is another one."""
        return self._fetcher.landed

    def condemn(self, reason: str) -> None:
        """Answer every read with NotTrusted from now on. The kernel goes on showing what it holds already."""
        self._condemned = reason

    def read_nowait(self, start: int, size: int) -> bytes | None:
        """Bytes [start, start + size) if all of them are local, else None. Mounts ask this first.

        Raises:
            IndexerError: never for ranges of the device.
            NotTrusted: the layer is condemned.
        """
        for watcher in self._watchers:
            watcher(start, start + size)
        if self._condemned:
            raise NotTrusted(self._condemned)
        data = self._local(start, size)
        if data is not None:
            self._hits += 1
            self._bytes_served += size
            self._run_ahead(start, size)
        return data

    def has_some(self, start: int, size: int) -> bool:
        """Whether some of bytes [start, start + size) are local; the tail does not count."""
        end = min(start + size, self._end)
        if start >= end:
            return False
        leaves = self._spans.leaf_range(start, end)
        return self._entry.missing(*leaves) != [leaves]

    async def read(self, start: int, size: int) -> bytes:
        """Bytes [start, start + size) of the address space; past its end there are zeros.

        Raises:
            IndexerError: what came is damaged or not what the TOC promises.
            NotTrusted: the layer is condemned.
            LazyfsError: it did not come, or has gone again.
        """
        if self._condemned:
            raise NotTrusted(self._condemned)
        data = self._local(start, size)
        if data is not None:
            self._hits += 1
            self._run_ahead(start, size)
        else:
            self._misses += 1
            self._complete = False  # if it was, something has been evicted
            data = await self._fetched(start, size, self._ahead_of(start, size, missed=True))
        self._bytes_served += size
        return data

    def _run_ahead(self, start: int, size: int) -> None:
        """Bring what a sequential reader wants next. Nobody waits for it."""
        numbers = self._ahead_of(start, size, missed=False)
        if numbers:
            self._fetcher.bring(numbers, Purpose.AHEAD)

    def _ahead_of(self, start: int, size: int, *, missed: bool) -> Sequence[int]:
        """The spans that a sequential reader wants next.

        While a reader reads what a boot pack brings, nothing is added to that: what is not in the pack is
        nothing that a start wants.
        """
        if self._complete or self._entry.refuses:
            return ()
        if self._coming and all(coming.is_vain for coming in self._coming):
            self._coming = []
        packed = bool(self._coming) and self._is_packed(start, size, missed=missed)
        ahead = self._ahead.note(start, start + size, 0 if packed else self._fetcher.worth_ahead)
        if ahead is None:
            return ()
        first, end = ahead[0], min(ahead[1], self._end)
        numbers = [
            n
            for n in self._spans.covering(first, end)
            if not self._has_span(n) and not self._comes(n, ever=not missed)
        ]
        if not numbers:
            self._complete = self._entry.complete
        return numbers

    def _is_packed(self, start: int, size: int, *, missed: bool) -> bool:
        """Whether a boot pack has brought some of [start, start + size) or, `missed`, will bring the rest."""
        end = min(start + size, self._end)
        if start >= end:
            return False
        first, last = self._spans.leaf_range(start, end)
        if not missed:
            return any(coming.touches(first, last, ever=True) for coming in self._coming)
        missing = self._entry.missing(first, last)
        return any(coming.promised(missing) is not None for coming in self._coming)

    def _comes(self, number: int, *, ever: bool = False) -> bool:
        """Whether something of a span comes by itself; with `ever`, or has come."""
        span = self._spans[number]
        return any(coming.touches(span.first_leaf, span.end_leaf, ever=ever) for coming in self._coming)

    def _has_span(self, number: int) -> bool:
        span = self._spans[number]
        return self._entry.has(span.first_leaf, span.end_leaf)

    def _local(self, start: int, size: int) -> bytes | None:
        if size <= 0:
            return b""
        if start + size > self._end:
            return self._local_tail(start, size)
        return self._entry.read_if_here(*self._spans.leaf_range(start, start + size), start, size)

    def _local_tail(self, start: int, size: int) -> bytes | None:
        output = bytearray(size)
        for run in self._runs(start, start + size):
            part = self._local(run.start, run.end - run.start)
            if part is None:
                return None
            run.lay(part, output)
        return bytes(output)

    def _runs(self, start: int, end: int) -> Iterator[Run]:
        """What of the stream stands in [start, end), which reaches into the tail; the rest is zeros."""
        before = [Piece(start, self._end - start)] if start < self._end else []
        return tail_runs(chain(before, tail_pieces(self._extents, max(start, self._end), end)))

    async def _fetched(self, start: int, size: int, ahead: Sequence[int]) -> bytes:
        if start + size <= self._end:
            return await self._fetched_stream(start, start + size, ahead)
        output = bytearray(size)
        for run in self._runs(start, start + size):
            run.lay(await self._fetched_stream(run.start, run.end, ahead), output)
        return bytes(output)

    async def _fetched_stream(self, start: int, end: int, ahead: Sequence[int]) -> bytes:
        with waiting(start, end - start, self._waited) as wait:
            for _ in range(_ATTEMPTS):
                with suppress(_Evicted):
                    data = await self._brought(start, end, ahead, wait)
                    wait.came = True
                    return data
        raise CacheError("content is evicted from the cache faster than it can be read; give that more room")

    async def _brought(self, start: int, end: int, ahead: Sequence[int], wait: Wait) -> bytes:
        for coming in self._coming:
            await self._wait_for(coming, start, end)
        wait.ends_for_pack()
        parts: dict[int, bytes | memoryview | None] = {}
        for number in self._spans.covering(start, end):
            first, size = self._part(number, start, end)
            offset = first - self._spans[number].uncompressed_start
            spare = self._spare.cut(number, offset, size) if self._spare else None
            parts[number] = self._local(first, size) if spare is None else spare
        missing = [number for number, part in parts.items() if part is None]
        landings = self._fetcher.bring(missing, ahead=ahead)
        wait.begins_for(landings.values())
        if missing and self._beside is not None:
            self._bring_beside(start, missing, self._beside)
        for number, landing in landings.items():
            data = await landing.wait()
            first, size = self._part(number, start, end)
            offset = first - self._spans[number].uncompressed_start
            part = self._local(first, size) if data is None else data[offset : offset + size]
            if part is None:
                raise _Evicted
            parts[number] = part
            if data is not None and self._entry.refuses:
                self._spare.keep(number, bytes(data))
        if not self.much_read.is_set() and self._fetcher.has_fetched_much:
            self.much_read.set()
        return b"".join(part for part in parts.values() if part is not None)

    def missing_spans(self, after: int, most: int) -> list[int]:
        """The next spans that are not here, at most `most` compressed bytes, but one.

        Args:
            after: number of the first one to look at.
            most: compressed bytes.
        """
        found: list[int] = []
        for number in absent_spans(self._spans, self._entry, range(after, len(self._spans))):
            most -= self._spans[number].compressed_size
            if found and most < 0:
                break
            found.append(number)
        return found

    def bring(self, numbers: Sequence[int], purpose: Purpose) -> Mapping[int, Landing]:
        """As SpanFetcher.bring."""
        return self._fetcher.bring(numbers, purpose)

    def bring_place(self, start: int, end: int, purpose: Purpose) -> Iterable[Landing]:
        """Bring the spans of [start, end) that are not all here."""
        numbers = [number for number in self._spans.covering(start, end) if not self._has_span(number)]
        return self._fetcher.bring(numbers, purpose).values()

    def peek(self, start: int, size: int) -> bytes | None:
        """As `read_nowait`, but by no reader: nobody is told of it, and nothing follows from it."""
        return self._local(start, size)

    def _bring_beside(self, start: int, missing: Sequence[int], beside: Beside) -> None:
        """Bring what may be wanted next while the line would be idle."""
        if self._entry.refuses or any(not coming.is_over for coming in self._coming):
            return  # what a start reads is on its way
        numbers = beside.choose(start, missing, self._entry, partial(self._comes, ever=True))
        self._fetcher.bring(numbers, Purpose.AHEAD)

    def _part(self, number: int, start: int, end: int) -> tuple[int, int]:
        """(start, size) of what of [start, end) lies in a span."""
        span = self._spans[number]
        first, last = max(start, span.uncompressed_start), min(end, span.uncompressed_end)
        return first, last - first

    async def _wait_for(self, coming: Coming, start: int, end: int) -> None:
        """Let come what will; what will not is being fetched meanwhile."""
        if coming.is_over:
            return
        await coming.settle()
        missing = {number: self._missing(number, start, end) for number in self._spans.covering(start, end)}
        promised = {number: coming.promised(leaves) for number, leaves in missing.items() if leaves}
        self._fetcher.bring(number for number, chunk in promised.items() if chunk is None)
        chunks = {number: chunk for number, chunk in promised.items() if chunk is not None}
        if chunks:
            apart = sum(self._spans[number].compressed_size for number in chunks)
            await coming.wait(max(chunks.values()), apart)

    def _missing(self, number: int, start: int, end: int) -> list[tuple[int, int]]:
        """The leaves of what of [start, end) lies in a span that are not here."""
        first, size = self._part(number, start, end)
        return self._entry.missing(*self._spans.leaf_range(first, first + size))
