"""Brings missing spans of a layer: few ranges, one worker thread each, every span by one task.

Nothing is awaited between looking at what is under way and claiming the rest; between processes the cache
entry's span locks do the same.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import Final

import trio

from indexer.errors import IndexerError
from indexer.spans import read_spans
from indexer.toc import Entry, Span, SpanTable
from indexer.toc_codec import decompress_window
from lazyfs.cache.layer_entry import LayerEntry
from lazyfs.errors import LazyfsError, Unreachable
from lazyfs.image.frame_stream import FrameStream
from lazyfs.image.landing import Failure, Landing, Landings
from lazyfs.image.plan import Fetch, plan_fetches
from lazyfs.image.readahead import ReadAheadSettings
from lazyfs.image.windows import ReadWindow, WindowFetcher
from lazyfs.source.base import Blob

_log = logging.getLogger(__name__)

_MOST_AT_ONCE: Final = 16 << 20
_COMPRESSED_START: Final = attrgetter("compressed_start")


@dataclass(frozen=True, slots=True)
class FetchSettings:
    """How missing spans are fetched.

    Attributes:
        timeout_s: seconds after which a fetch is given up.
        max_bytes: compressed bytes of one request.
        max_gap: compressed bytes between two wanted spans that are fetched rather than skipped.
        read_ahead: how far to run ahead of sequential readers.
    """

    timeout_s: float = 60.0
    max_bytes: int = 2 << 20
    max_gap: int = 32 << 10
    read_ahead: ReadAheadSettings = field(default_factory=ReadAheadSettings)


@dataclass(frozen=True, slots=True)
class FetchStatistics:
    """Counts of one layer's fetches.

    Attributes:
        fetches: range requests planned.
        bytes_fetched: compressed bytes asked for by them.
        spans_fetched: spans they brought.
        failures: fetches that failed.
    """

    fetches: int = 0
    bytes_fetched: int = 0
    spans_fetched: int = 0
    failures: int = 0


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
        self._landings = Landings()
        self._landed = trio.Event()  # replaced each time something has landed
        self._fetches = self._bytes = self._fetched = self._failures = 0

    def __repr__(self) -> str:
        return f"<SpanFetcher {self._entry!r}, {len(self._landings)} spans under way>"

    def statistics(self) -> FetchStatistics:
        """Counts so far."""
        return FetchStatistics(self._fetches, self._bytes, self._fetched, self._failures)

    def bring(self, numbers: Iterable[int]) -> dict[int, Landing]:
        """The landings of spans that are not local: those under way, and now all others too."""
        numbers = list(numbers)
        wanted: set[int] = set()
        for number in numbers:
            if number in self._landings or number in wanted:
                continue
            sharing = self._spans.sharing_entry(number)
            if len(sharing) > 1 and self._is_large(sharing):
                self._start_frame(sharing)
            else:  # what comes out of one entry comes at once, wanted or not
                wanted.update(other for other in sharing if other not in self._landings)
        self._landings.claim(wanted)
        spans = [self._spans[number] for number in sorted(wanted)]
        settings = self._settings
        for fetch in plan_fetches(spans, max_bytes=settings.max_bytes, max_gap=settings.max_gap):
            self._nursery.start_soon(self._guarded, fetch.spans, partial(self._fetch, fetch))
        return {number: self._landings[number] for number in numbers}

    def _is_large(self, sharing: range) -> bool:
        """Whether the spans of one entry are pieces of a zstd frame that is better streamed."""
        first, last = self._spans[sharing[0]], self._spans[sharing[-1]]
        compressed = last.compressed_end - last.compressed_start
        large = compressed > self._settings.max_bytes or last.skip + last.size > _MOST_AT_ONCE
        return large and first.entry is Entry.ZSTD_FRAME

    def _start_frame(self, sharing: range) -> None:
        spans = [self._spans[number] for number in sharing]
        self._landings.claim(number for number in sharing if number not in self._landings)
        stream = FrameStream(spans, self._entry, self._blob, self._landings, self._count)
        settings = self._settings
        work = partial(stream.run, settings.max_bytes, settings.timeout_s)
        self._nursery.start_soon(self._guarded, spans, work)

    async def _guarded(self, spans: Sequence[Span], work: Callable[[], Awaitable[None]]) -> None:
        """Do the work that lands these spans; whatever happens, who waits for them is told."""
        error: Failure | None = Unreachable("the fetch was cut off: shutting down")
        try:
            await work()
            error = None
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

    async def wait_landed(self) -> None:
        """Wait until one more fetch has ended, well or not."""
        await self._landed.wait()

    def _failed(self, spans: Sequence[Span], error: Failure) -> Failure:
        self._failures += 1
        _log.error("fetching from byte %d of the blob: %s", spans[0].compressed_start, error)
        return error

    async def _fetch(self, fetch: Fetch) -> None:
        with trio.fail_after(self._settings.timeout_s):
            async with AsyncExitStack() as locks:
                for span in fetch.spans:  # ascending, as everybody locks them
                    await locks.enter_async_context(self._entry.span_lock(span.number))
                missing = [s for s in fetch.spans if not self._entry.has(s.first_leaf, s.end_leaf)]
                if not missing:
                    return
                start, end = missing[0].compressed_start, max(span.compressed_end for span in missing)
                self._count(end - start, len(missing))
                landed = await self._fetch_range(missing, start, end)
        for number, data in landed:
            self._landings.land(number, data)

    async def _fetch_range(self, spans: Sequence[Span], start: int, end: int) -> list[tuple[int, bytes]]:
        if self._windows is None:
            unpack = partial(self._unpack, spans, start, self._read_window)
            return await self._blob.fetch(start, end, unpack)
        return await self._windows.beside(self._blob, spans, start, end, partial(self._unpack, spans, start))

    def _unpack(
        self, spans: Sequence[Span], start: int, read_window: ReadWindow, data: memoryview
    ) -> list[tuple[int, bytes]]:
        """On the thread that received `data`: decompress, verify, write, mark."""
        unpacked = []
        for at, sharing in groupby(spans, key=_COMPRESSED_START):
            group = list(sharing)
            window = decompress_window(read_window(group[0]))
            compressed = data[at - start : max(span.compressed_end for span in group) - start]
            for span, output in zip(group, read_spans(group, compressed, window), strict=True):
                self._entry.put(span.uncompressed_start, span.first_leaf, output)
                unpacked.append((span.number, output))
        return unpacked

    def _count(self, size: int, spans: int) -> None:
        self._fetches += 1
        self._bytes += size
        self._fetched += spans
