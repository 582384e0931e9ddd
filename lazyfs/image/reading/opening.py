"""Opens layers for reading: index, place in the cache and source become one that fetches what is missing."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial

import trio

from indexer.boot_pack import PackLayer
from indexer.toc import Span
from lazyfs.cache.cache import Cache
from lazyfs.image.indexes.indexing import IndexedLayer
from lazyfs.image.indexes.windows import WindowFetcher
from lazyfs.image.reading.beside import Beside
from lazyfs.image.reading.completion import complete_when_much_read
from lazyfs.image.reading.fetcher import FetchSettings, SpanFetcher
from lazyfs.image.reading.layer import LazyLayer
from lazyfs.image.reading.traffic import SlowRead, Traffic, WaitTally
from lazyfs.image.reading.waits import Wait
from lazyfs.image.tasks import open_tasks
from lazyfs.source.base import Blob


@asynccontextmanager
async def open_layer(
    indexed: IndexedLayer,
    blob: Blob,
    cache: Cache,
    settings: FetchSettings,
    waits: WaitTally | None = None,
) -> AsyncIterator[LazyLayer]:
    """A layer, open for reading. What was fetched is made durable at the end.

    Args:
        indexed: its index.
        blob: its bytes at their source.
        cache: where they are kept.
        settings: how to fetch; their traffic is told of reads that wait.
        waits: told of those of this layer.

    Raises:
        IndexerError: its table is damaged.
        CacheError: the cache cannot be used.
    """
    head = indexed.head
    spans = head.spans()
    facts = (head.header.layer_digest, head.digest, head.header.device_size, spans.leaves)
    with await trio.to_thread.run_sync(cache.layer, *facts) as entry:  # it may wait for an evictor
        async with open_tasks() as nursery:
            fetcher = SpanFetcher(
                spans=spans,
                entry=entry,
                read_window=partial(_window, indexed.windows),
                blob=blob,
                nursery=nursery,
                settings=settings,
                windows=WindowFetcher(indexed.remote_windows, nursery) if indexed.remote_windows else None,
            )
            line = blob.line if settings.read_ahead.most_reach else None
            beside = Beside(spans, fetcher, line, head.file_ranges) if line is not None else None
            names = PackLayer(head.header.layer_digest, head.digest)
            tallies = (settings.traffic, waits) if waits is not None else (settings.traffic,)
            waited = partial(_tell, tallies, names)
            lazy = LazyLayer(spans, head.extents(), entry, fetcher, settings.read_ahead, beside, waited)
            if settings.read_ahead.most_reach:
                nursery.start_soon(complete_when_much_read, lazy)
            yield lazy
            nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(lazy.sync)


def _tell(tallies: Iterable[Traffic | WaitTally], layer: PackLayer, wait: Wait) -> None:
    read = SlowRead(wait.seconds, wait.asked_s, layer, wait.start, wait.size, wait.cause, wait.came)
    for tally in tallies:
        tally.waited(read)


def _window(windows: memoryview, span: Span) -> bytes:
    return bytes(windows[span.window_start : span.window_end])
