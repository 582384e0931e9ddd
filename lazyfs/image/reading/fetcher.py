"""Brings missing spans of a layer: few ranges, one worker thread each, every span by one task.

Nothing is awaited between looking at what is under way and claiming the rest; between processes the cache
entry's span locks do the same.
"""

import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import Final, Self

import trio
from msgspec import Struct, field
from msgspec.structs import replace

from indexer.errors import IndexerError
from indexer.spans.rows import Group, Made, make_spans
from indexer.toc import Entry, Span, SpanTable
from indexer.toc_codec import decompress_window
from lazyfs.cache.layer_entry import LayerEntry
from lazyfs.errors import LazyfsError, RangeRefused, Unreachable
from lazyfs.image.indexes.windows import ReadWindow, WindowFetcher
from lazyfs.image.reading.frame_stream import FrameStream
from lazyfs.image.reading.landing import Failure, Landing, Landings
from lazyfs.image.reading.plan import Fetch, plan_fetches
from lazyfs.image.reading.readahead import ReadAheadSettings
from lazyfs.image.reading.span_pour import SpanPour
from lazyfs.image.reading.throughput import Throughput
from lazyfs.image.reading.traffic import Purpose, Tally, Ticket, Traffic, TrafficCount
from lazyfs.image.reading.whole_stream import WholeStream
from lazyfs.source.base import Blob

_log = logging.getLogger(__name__)

_MOST_AT_ONCE: Final = 16 << 20
_MUCH: Final = 8 << 20
_TRANSFERS: Final = 8
_LEAST_PACED: Final = 64 << 10
_LEAST_TRANSFER_S: Final = 0.001
_STREAMED_FROM: Final = 512 << 10  # compressed bytes; fewer come at once
_COMPRESSED_START: Final = attrgetter("compressed_start")


class FetchSettings(Struct, frozen=True):
    """How missing spans are fetched.

    Attributes:
        timeout_s: seconds after which a fetch is given up.
        max_bytes: compressed bytes of one request, unless it is unpacked as it comes.
        max_streamed: compressed bytes of one that is.
        max_gap: compressed bytes between two wanted spans that are fetched rather than skipped.
        read_ahead: how far to run ahead of sequential readers.
        traffic: where requests take turns; shared by all layers with these settings.
    """

    timeout_s: float = 60.0
    max_bytes: int = 2 << 20
    max_streamed: int = 8 << 20
    max_gap: int = 32 << 10
    read_ahead: ReadAheadSettings = field(default_factory=ReadAheadSettings)
    traffic: Traffic = field(default_factory=Traffic)

    def paced(self, rate: int) -> Self:
        """The same with requests so small that others get their turn soon, at so many bytes a second."""
        most = max(rate // 4, _LEAST_PACED) if rate else self.max_streamed
        return replace(self, max_bytes=min(self.max_bytes, most), max_streamed=min(self.max_streamed, most))


class FetchStatistics(Struct, frozen=True):
    """Counts of one layer's fetches.

    Attributes:
        fetches: range requests planned.
        bytes_fetched: compressed bytes asked for by them.
        failures: fetches that failed.
        asked: what was asked for whom.
    """

    fetches: int = 0
    bytes_fetched: int = 0
    failures: int = 0
    asked: Mapping[Purpose, TrafficCount] = field(default_factory=dict)


class SpanFetcher:
    """Fetches spans of one layer into its cache entry.

    Args:
        spans: how to enter the layer.
        entry: its place in the cache.
        read_window: gives compressed windows; called on a worker thread.
        blob: the compressed bytes at their source.
        nursery: where fetches live; they may outlive the readers that asked.
        settings: how to fetch.
        windows: gives the windows instead, where they are not here.
    """

    def __init__(
        self,
        *,
        spans: SpanTable,
        entry: LayerEntry,
        read_window: ReadWindow,
        blob: Blob,
        nursery: trio.Nursery,
        settings: FetchSettings,
        windows: WindowFetcher | None = None,
    ) -> None:
        self._spans = spans
        self._entry = entry
        self._read_window = read_window
        self._blob = blob
        self._nursery = nursery
        self._settings = settings
        self._windows = windows
        compressed_size = max((span.compressed_end for span in spans[-1:]), default=0)
        self._growth = spans.uncompressed_size / max(compressed_size, 1)
        self._landings = Landings()
        self._throughput = Throughput()
        self._transfers: deque[tuple[int, float]] = deque(maxlen=_TRANSFERS)  # bytes and seconds
        self._whole: WholeStream | None = None  # once the server was seen to know no ranges
        self._landed = trio.Event()  # replaced each time something has landed
        self._tally = Tally()
        self._fetches = self._bytes = self._failures = 0

    def __repr__(self) -> str:
        return f"<SpanFetcher {self._entry!r}, {len(self._landings)} spans under way>"

    def statistics(self) -> FetchStatistics:
        """Counts so far."""
        asked = self._tally.counts()
        return FetchStatistics(self._fetches, self._bytes, self._failures, asked)

    @property
    def worth_ahead(self) -> int | None:
        """Uncompressed bytes that are worth being brought ahead of readers; None while that is not known."""
        compressed = self._throughput.worth_ahead(self._settings.timeout_s)
        return None if compressed is None else int(compressed * self._growth)

    @property
    def has_fetched_much(self) -> bool:
        """Whether about a third of the layer was asked for, and not only of a small one."""
        return self._bytes >= max(_MUCH, self._blob.size // 3)

    def is_under_way(self, number: int) -> bool:
        """Whether a span is being brought."""
        return number in self._landings

    def carried(self, within_s: float, round_trip_s: float) -> int:
        """Bytes that the line carries within a time, by the requests of late; 0 before any.

        Where bytes are counted out, none are to spare.

        Args:
            within_s: that time.
            round_trip_s: how long requests took before anything came.
        """
        if self._settings.traffic.rate:
            return 0
        size = sum(size for size, _ in self._transfers)
        seconds = sum(max(seconds - round_trip_s, _LEAST_TRANSFER_S) for _, seconds in self._transfers)
        return int(size / seconds * within_s) if size else 0

    @property
    def bytes_under_way(self) -> int:
        """Compressed bytes of all spans that are being brought."""
        return self._compressed_size(self._landings)

    def _compressed_size(self, numbers: Iterable[int]) -> int:
        return sum(self._spans[number].compressed_size for number in numbers)

    def bring(
        self, numbers: Iterable[int], purpose: Purpose = Purpose.DEMAND, *, ahead: Iterable[int] = ()
    ) -> dict[int, Landing]:
        """The landings of spans that are not local: those under way, and now all others too.

        Args:
            numbers: of the spans.
            purpose: whom for. While nobody waits for them yet, requests may be few and large.
            ahead: more spans, that are wanted next: they come behind these by the same requests where these
                land as they pass, else by their own.
        """
        numbers = list(numbers)
        wanted = self._unclaimed(numbers, purpose)
        extra = self._unclaimed(ahead, Purpose.AHEAD) - wanted
        if extra and self._windows is None:
            self._send(wanted | extra, purpose, extra)
        else:
            self._send(wanted, purpose)
            self._send(extra, Purpose.AHEAD)
        return {number: self._landings[number] for number in numbers}

    def _unclaimed(self, numbers: Iterable[int], purpose: Purpose) -> set[int]:
        """Those that are not under way, and what comes out of the same entries; large frames are begun."""
        unclaimed: set[int] = set()
        for number in numbers:
            if number in self._landings:
                if purpose is Purpose.DEMAND:
                    self._settings.traffic.promote(self._landings[number].ticket)
            elif number not in unclaimed:
                sharing = self._spans.sharing_entry(number)
                if len(sharing) > 1 and self._is_large(sharing):
                    self._start_frame(sharing, purpose)
                else:
                    unclaimed.update(other for other in sharing if other not in self._landings)
        return unclaimed

    def _send(self, numbers: Iterable[int], purpose: Purpose, ahead: Collection[int] = ()) -> None:
        """Claim spans, and ask for them by few requests; nobody waits yet for those that are `ahead`."""
        spans = [self._spans[number] for number in sorted(numbers)]
        if self._whole is not None and spans:
            self._landings.claim((span.number for span in spans), Ticket(purpose))
            self._stream_whole(spans)
            return
        settings = self._settings
        streamed = self._windows is None and (bool(ahead) or purpose is not Purpose.DEMAND)
        max_bytes = settings.max_streamed if streamed else settings.max_bytes
        for fetch in plan_fetches(spans, max_bytes=max_bytes, max_gap=settings.max_gap):
            extra = [span.number for span in fetch.spans if span.number in ahead]
            whom_for = Purpose.AHEAD if len(extra) == len(fetch.spans) else purpose
            ticket = Ticket(whom_for, self._compressed_size(extra))
            self._landings.claim((span.number for span in fetch.spans), ticket)
            self._nursery.start_soon(self._guarded, fetch.spans, partial(self._fetch, fetch, ticket))

    async def _pay(self, size: int) -> None:
        """Wait until a stream may go on with so many bytes, for readers."""
        await self._settings.traffic.pay(Ticket(Purpose.DEMAND), size)

    def _is_large(self, sharing: range) -> bool:
        """Whether the spans of one entry are pieces of a zstd frame that is better streamed."""
        first, last = self._spans[sharing[0]], self._spans[sharing[-1]]
        large = last.compressed_size > self._settings.max_bytes or last.skip + last.size > _MOST_AT_ONCE
        return large and first.entry is Entry.ZSTD_FRAME

    def _start_frame(self, sharing: range, purpose: Purpose) -> None:
        spans = [self._spans[number] for number in sharing]
        ticket = Ticket(purpose)
        self._landings.claim((number for number in sharing if number not in self._landings), ticket)
        if self._whole is not None:
            self._stream_whole(spans)
            return
        settings = self._settings
        stream = FrameStream(
            spans, self._entry, self._blob, self._landings, settings.traffic, ticket, self._count
        )
        work = partial(stream.run, settings.max_bytes, settings.timeout_s)
        self._nursery.start_soon(self._guarded, spans, work)

    def _stream_whole(self, spans: Sequence[Span]) -> None:
        """Land these claimed spans by streaming the layer from its beginning."""
        if self._whole is None:
            _log.warning("the server of %r knows no ranges: its layer is streamed whole", self)
            pay = self._pay if self._settings.traffic.rate else None
            self._whole = WholeStream(self._spans, self._entry, self._blob, self._landings, self._count, pay)
        # What was refused late may have passed by meanwhile.
        self._whole.wanted.extend(span for span in spans if span.number in self._landings)
        if self._whole.wanted and not self._whole.runs:
            self._whole.runs = True
            self._nursery.start_soon(self._guarded, self._whole.wanted, self._whole.run)

    async def _guarded(self, spans: Sequence[Span], work: Callable[[], Awaitable[None]]) -> None:
        """Do the work that lands these spans; whatever happens, who waits for them is told."""
        error: Failure | None = Unreachable("the fetch was cut off: shutting down")
        try:
            await work()
            error = None
        except RangeRefused as refused:
            if refused.status == 200:
                self._stream_whole(spans)
                spans = ()
            else:
                error = self._failed(spans, refused)
        except trio.TooSlowError:
            error = self._failed(spans, Unreachable(f"no answer within {self._settings.timeout_s:g} s"))
        except (IndexerError, LazyfsError) as raised:
            error = self._failed(spans, raised)
        except Exception as bug:  # noqa: BLE001  # it must reach the readers, not end the mount
            _log.error("a bug while fetching spans of %r", self, exc_info=bug)
            error = self._failed(spans, LazyfsError("a bug; the log has its trace"))
        finally:
            for span in spans:
                self._landings.land(span.number, None, error)
            self._landed.set()
            self._landed = trio.Event()

    @property
    def landed(self) -> trio.Event:
        """Set once one more fetch has ended, well or not; from then on it is another one."""
        return self._landed

    def _failed(self, spans: Sequence[Span], error: Failure) -> Failure:
        self._failures += 1
        start = spans[0].compressed_start if spans else 0
        _log.error("fetching from byte %d of the blob: %s", start, error)
        return error

    async def _fetch(self, fetch: Fetch, ticket: Ticket) -> None:
        asked = trio.current_time()
        async with AsyncExitStack() as locks:
            traffic = self._settings.traffic
            await locks.enter_async_context(traffic.turn(ticket))
            paid = max(span.compressed_end for span in fetch.spans) - fetch.spans[0].compressed_start
            await traffic.pay(ticket, paid)
            with trio.fail_after(self._settings.timeout_s):
                for numbers in _neighbours(fetch.spans):  # ascending, as everybody locks them
                    await locks.enter_async_context(self._entry.span_locks(numbers))
                missing = [s for s in fetch.spans if not self._entry.has(s.first_leaf, s.end_leaf)]
                if not missing:
                    traffic.give_back(paid)
                    return
                start, end = missing[0].compressed_start, max(span.compressed_end for span in missing)
                traffic.give_back(paid - (end - start))
                self._count(end - start, ticket.purpose, ticket.ahead)
                began = trio.current_time()
                ticket.queue_s = began - asked
                self._throughput.begun(began)
                try:
                    landed = await self._fetch_range(missing, start, end, ticket)
                    self._transfers.append((end - start, trio.current_time() - began))
                except RangeRefused:
                    traffic.give_back(end - start)
                    raise
                finally:
                    self._throughput.ended(trio.current_time())
        self._land(landed)

    async def _fetch_range(self, spans: Sequence[Span], start: int, end: int, ticket: Ticket) -> list[Made]:
        """What has not landed yet, when all of it has come."""
        if self._windows is not None:
            unpack = partial(self._unpack, spans, ticket)
            landed = await self._windows.beside(self._blob, spans, start, end, unpack)
        elif len(spans) > 1 and (end - start > _STREAMED_FROM or ticket.ahead):
            return await self._stream(spans, start, end, ticket)
        else:
            unpack_here = partial(self._unpack, spans, ticket, self._read_window)
            landed = await self._blob.fetch(start, end, unpack_here)
        self._throughput.arrived(end - start, trio.current_time())
        return landed

    async def _stream(self, spans: Sequence[Span], start: int, end: int, ticket: Ticket) -> list[Made]:
        """Land spans as they pass. If what comes is damaged, the rest is asked for once more, elsewhere."""
        token = trio.lowlevel.current_trio_token()

        pour = SpanPour(spans, start, partial(self._made, self._read_window))

        def consume(piece: memoryview) -> None:
            made = pour.feed(piece)
            for row in made:
                self._entry.put_spans(row.spans, row.data)
            token.run_sync_soon(self._passed, len(piece), made)

        try:
            await self._blob.stream(start, end, consume)
        except IndexerError:
            left = [span for span in spans if span.number in self._landings]
            if not left:
                raise
            first, last = left[0].compressed_start, max(span.compressed_end for span in left)
            await self._settings.traffic.pay(ticket, last - first)
            self._count(last - first, ticket.purpose)
            unpack_left = partial(self._unpack, left, ticket, self._read_window)
            return await self._blob.fetch(first, last, unpack_left)
        return []

    def _passed(self, size: int, made: Sequence[Made]) -> None:
        self._throughput.arrived(size, trio.current_time())
        self._land(made)

    def _land(self, made: Iterable[Made]) -> None:
        for row in made:
            for span, data in row.parts():
                self._landings.land(span.number, data)

    def _unpack(
        self,
        spans: Sequence[Span],
        ticket: Ticket,
        read_window: ReadWindow,
        data: memoryview,
    ) -> list[Made]:
        """On the thread that received `data`, from the first span on: decompress, verify, write, mark."""
        began = time.perf_counter()
        groups = [list(group) for _, group in groupby(spans, _COMPRESSED_START)]
        made: list[Made] = []
        for row in self._made(read_window, groups, data):
            self._entry.put_spans(row.spans, row.data)
            made.append(row)
        ticket.unpack_s = time.perf_counter() - began
        return made

    @staticmethod
    def _made(read_window: ReadWindow, groups: Sequence[Group], compressed: memoryview) -> Iterator[Made]:
        """Spans by entry, verified; of their compressed bytes from the first one on."""
        return make_spans(
            groups,
            compressed,
            groups[0][0].compressed_start,
            lambda span: decompress_window(read_window(span)),
        )

    def _count(self, size: int, purpose: Purpose = Purpose.DEMAND, ahead: int = 0) -> None:
        """A request for `size` bytes is sent; nobody waits yet for at most `ahead` of them."""
        ahead = min(ahead, size)
        for tally in (self._settings.traffic, self._tally):
            tally.count(purpose, size - ahead)
            tally.count(Purpose.AHEAD, ahead, requests=0)
        self._fetches += 1
        self._bytes += size


def _neighbours(spans: Sequence[Span]) -> Iterator[range]:
    """The numbers of spans in order, by runs without a gap."""
    first = 0
    for after in range(1, len(spans) + 1):
        if after == len(spans) or spans[after].number != spans[after - 1].number + 1:
            yield range(spans[first].number, spans[after - 1].number + 1)
            first = after
