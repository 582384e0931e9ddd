"""Has the disk read what the last start touched, before this one asks for it bit by bit.

The content of a start that was seen here before lies in the cache, but after a while no longer in memory. Its
readers would wait for the disk again and again, once for each place; asked for at once, all of it comes in
little more time than one. What is in memory still costs a microsecond a place.
"""

import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Final

import trio

from indexer.boot_pack import PackLayer
from indexer.errors import IndexerError
from lazyfs.cache.cache import Cache
from lazyfs.errors import CacheError
from lazyfs.image.boot.recording import newest_trace
from lazyfs.image.boot.trace import Touch, Trace
from lazyfs.image.reading.layer import LazyLayer
from lazyfs.image.tasks import background_tasks

TraceOf = Callable[[], Trace | None]
"""What a start touched, if that is known; called in a worker thread."""

_MOST_BYTES: Final = 128 << 20

_log = logging.getLogger(__name__)


@asynccontextmanager
async def warmed(
    manifest: str, layers: Mapping[PackLayer, LazyLayer], cache: Cache, metadata_file: Path
) -> AsyncIterator[Callable[[TraceOf], None]]:
    """Warm the start of a mount of open layers, in the background.

    Gives what does so again, by a trace of the caller's.

    Args:
        manifest: digest of the image's manifest.
        layers: its layers, each once.
        cache: where its traces are.
        metadata_file: its tree.
    """
    async with background_tasks() as nursery:

        def warm(trace_of: TraceOf) -> None:
            nursery.start_soon(_warm, trace_of, layers, metadata_file)

        warm(partial(newest_trace, cache, manifest))
        yield warm


async def _warm(trace_of: TraceOf, layers: Mapping[PackLayer, LazyLayer], metadata_file: Path) -> None:
    def work() -> None:
        _read_soon(metadata_file)
        trace = trace_of()
        for names, start, end in _places(trace) if trace else ():
            if names in layers:
                _read_layer_soon(layers[names], start, min(end, layers[names].size))

    try:
        await trio.to_thread.run_sync(work)
    except (CacheError, IndexerError, OSError) as error:
        _log.info("the start is not warmed: %s", error)


def _read_soon(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
    finally:
        os.close(descriptor)


def _read_layer_soon(layer: LazyLayer, start: int, end: int) -> None:
    """Have the disk read [start, end) of a layer, span by span as far as that is here."""
    for number in layer.spans.covering(start, end):
        span = layer.spans[number]
        first, last = max(start, span.uncompressed_start), min(end, span.uncompressed_end)
        layer.entry.read_soon(*layer.spans.leaf_range(first, last), first, last - first)


def _places(trace: Trace) -> Iterator[tuple[PackLayer, int, int]]:
    """What a trace touched first, in few places, as (layer, start, end)."""
    sizes = accumulate(touch.end - touch.start for touch in trace.touches)
    first = sorted(touch for touch, size in zip(trace.touches, sizes, strict=True) if size <= _MOST_BYTES)
    place: Touch | None = None
    for touch in first:
        if place is not None and place.layer == touch.layer and touch.start <= place.end:
            place = place._replace(end=max(place.end, touch.end))
            continue
        if place is not None:
            yield trace.layers[place.layer], place.start, place.end
        place = touch
    if place is not None:
        yield trace.layers[place.layer], place.start, place.end
