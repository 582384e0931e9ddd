"""Streams a large zstd frame front to back: nothing in it can be had alone.

Readers behind the frontier are served as it passes, those ahead of it wait. Among processes one streams;
the others watch what it puts into the cache.
"""

from collections.abc import Callable, Sequence
from typing import Final

import trio

from indexer.toc import Span
from indexer.zstd_spans import FrameReader
from lazyfs.cache.layer_entry import LayerEntry
from lazyfs.errors import RangeRefused
from lazyfs.image.landing import Landings
from lazyfs.image.tasks import open_tasks
from lazyfs.image.traffic import Purpose, Ticket, Traffic
from lazyfs.source.base import Blob

_WATCH_EVERY_S: Final = 0.02

Count = Callable[[int, int, Purpose], None]
"""Told of each request: compressed bytes, spans it completed, and whom it was for."""


class FrameStream:
    """One frame's way into the cache.

    Args:
        spans: all spans of the frame, in order.
        entry: where they go.
        blob: where they come from.
        landings: who waits for them.
        traffic: where its requests take turns.
        ticket: theirs, and that of the landings it was claimed with.
        count: told of each request.
    """

    def __init__(
        self,
        spans: Sequence[Span],
        entry: LayerEntry,
        blob: Blob,
        landings: Landings,
        traffic: Traffic,
        ticket: Ticket,
        count: Count,
    ) -> None:
        self._spans = spans
        self._entry = entry
        self._blob = blob
        self._landings = landings
        self._traffic = traffic
        self._ticket = ticket
        self._count = count

    async def run(self, piece_size: int, timeout_s: float) -> None:
        """Stream the frame; every piece has `timeout_s` seconds to come.

        Raises:
            IndexerError: what came is damaged.
            LazyfsError: it did not come.
            trio.TooSlowError: not in time.
        """
        async with open_tasks() as nursery:
            watching = trio.CancelScope()
            nursery.start_soon(self._watch, watching)
            async with self._entry.span_lock(self._spans[0].number):
                watching.cancel()
                self._land_present()
                if any(span.number in self._landings for span in self._spans):
                    await self._stream(piece_size, timeout_s)

    async def _watch(self, watching: trio.CancelScope) -> None:
        with watching:
            while True:
                await trio.sleep(_WATCH_EVERY_S)
                self._land_present()

    def _land_present(self) -> None:
        for span in self._spans:
            if span.number in self._landings and self._entry.has(span.first_leaf, span.end_leaf):
                self._landings.land(span.number, None)

    async def _stream(self, piece_size: int, timeout_s: float) -> None:
        reader = FrameReader(self._spans)

        def consume(piece: memoryview) -> list[tuple[Span, bytes]]:
            finished = reader.feed(bytes(piece))
            for span, data in finished:
                self._entry.put(span.uncompressed_start, span.first_leaf, data)
            return finished

        end = self._spans[-1].compressed_end
        for start in range(self._spans[0].compressed_start, end, piece_size):
            stop = min(start + piece_size, end)
            async with self._traffic.turn(self._ticket):
                await self._traffic.pay(self._ticket, stop - start)
                try:
                    with trio.fail_after(timeout_s):
                        finished = await self._blob.fetch(start, stop, consume)
                except RangeRefused:
                    self._traffic.give_back(stop - start)
                    raise
                self._count(stop - start, len(finished), self._ticket.purpose)
            for span, data in finished:
                self._landings.land(span.number, data)
        reader.close()
