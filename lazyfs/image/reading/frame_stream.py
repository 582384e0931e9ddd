"""Streams a large zstd frame front to back: nothing in it can be had alone.

Readers behind the frontier are served as it passes, those ahead of it wait. Among processes one streams;
the others watch what it puts into the cache.
"""

import logging
import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Final

import trio

from indexer.spans.zstd import FrameReader
from indexer.toc import Span
from lazyfs.cache.layer_entry import LayerEntry
from lazyfs.errors import RangeRefused
from lazyfs.image.reading.landing import Landings
from lazyfs.image.reading.traffic import Purpose, Ticket, Traffic
from lazyfs.image.tasks import open_tasks
from lazyfs.source.base import Blob

_WATCH_EVERY_S: Final = 0.02
_SILENCE_S: Final = 10.0
_FIRST_LEAF: Final = attrgetter("first_leaf")

_log = logging.getLogger(__name__)

Count = Callable[[int, Purpose], None]
"""Told of each request: compressed bytes, and whom it was for."""


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
        self._from_leaf = spans[0].first_leaf  # all before it is here, or was
        self._absent: list[tuple[int, int]] | None = None

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
        """Land what another process brings. It may be stopped: then people are told, once."""
        silent_since = trio.current_time()
        with watching:
            while True:
                await trio.sleep(_WATCH_EVERY_S)
                if self._land_present():
                    silent_since = trio.current_time()
                elif trio.current_time() - silent_since > _SILENCE_S:
                    silent_since = math.inf
                    where = self._entry.path / "data"
                    _log.warning("another process (`fuser -v %s` names it) streams what we wait for", where)

    def _land_present(self) -> bool:
        """Land the spans that are here by now; whether there is something new.

        Marks are looked at, not spans, of which there may be tens of thousands.
        """
        end = self._spans[-1].end_leaf
        absent = self._entry.missing(self._from_leaf, end)
        if absent == self._absent:
            return False
        self._absent = absent
        here_from = self._from_leaf
        for first, last in [*absent, (end, end)]:
            self._land(here_from, first)
            here_from = last
        first = absent[0][0] if absent else end  # in the middle of a span, perhaps
        self._from_leaf = self._spans[bisect_right(self._spans, first, key=_FIRST_LEAF) - 1].first_leaf
        return True

    def _land(self, first_leaf: int, end_leaf: int) -> None:
        """Land the spans of which all leaves are among these."""
        at = bisect_left(self._spans, first_leaf, key=_FIRST_LEAF)
        while at < len(self._spans) and self._spans[at].end_leaf <= end_leaf:
            self._landings.land(self._spans[at].number, None)
            at += 1

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
                self._count(stop - start, self._ticket.purpose)
            for span, data in finished:
                self._landings.land(span.number, data)
        reader.close()
