"""Streams a layer whole, front to back: what is left where a server knows no ranges.

Spans land as they pass. A span that is asked for when it has passed by already, and is not in the cache, is
brought by another pass. Each span's window is the output of the one before: none is fetched.
"""

from collections.abc import Awaitable, Callable, Sequence
from itertools import chain
from typing import Final

import trio

from indexer.spans.rows import Group, Made, make_spans
from indexer.toc import Entry, Span, SpanTable
from lazyfs.cache.layer_entry import LayerEntry
from lazyfs.image.reading.landing import Landings
from lazyfs.image.reading.span_pour import SpanPour
from lazyfs.image.tasks import background_tasks
from lazyfs.source.base import Blob

_WINDOW_SIZE: Final = 32 << 10


class WholeStream:
    """A layer's way into the cache, all of it.

    Attributes:
        wanted: claimed spans for whose landing the stream goes on; more may be added while it does.
        runs: whether it goes on, or is about to; set by whoever has it run.

    Args:
        spans: all spans of the layer.
        entry: where they go.
        blob: where they come from.
        landings: who waits for them.
        count: told of each pass: compressed bytes.
        pay: waits until so many bytes more may come; None if any number may.
    """

    def __init__(
        self,
        spans: SpanTable,
        entry: LayerEntry,
        blob: Blob,
        landings: Landings,
        count: Callable[[int], None],
        pay: Callable[[int], Awaitable[None]] | None = None,
    ) -> None:
        self._pay = pay
        self._spans = spans
        self._entry = entry
        self._blob = blob
        self._landings = landings
        self._count = count
        self.wanted: list[Span] = []
        self.runs = False

    async def run(self) -> None:
        """Stream until no span is wanted any more.

        Raises:
            IndexerError: what came is damaged.
            LazyfsError: it did not come.
        """
        try:
            while self.wanted:
                before = len(self.wanted)
                await self._pass()
                for span in self.wanted[:before]:  # all of them have passed
                    self._landings.land(span.number, None)
                # Of those that were wanted since, most have passed too.
                self.wanted[:] = [span for span in self.wanted[before:] if span.number in self._landings]
        finally:
            self.runs = False

    async def _pass(self) -> None:
        token = trio.lowlevel.current_trio_token()
        output = b""

        def window_of(span: Span) -> bytes:
            return output if span.entry is Entry.DEFLATE else b""

        def unpack(groups: Sequence[Group], compressed: memoryview) -> list[Made]:
            nonlocal output
            made: list[Made] = []
            for group in groups:  # each is the next one's window
                made += make_spans([group], compressed, groups[0][0].compressed_start, window_of)
                for span, data in chain.from_iterable(each.parts() for each in made[-len(group) :]):
                    output = (output + data[: span.content_size][-_WINDOW_SIZE:])[-_WINDOW_SIZE:]
            return made

        pour = SpanPour(self._spans, 0, unpack)
        purse = _Purse(self._pay) if self._pay is not None else None

        def consume(piece: memoryview) -> None:
            if purse is not None:
                trio.from_thread.run(purse.pay, len(piece), trio_token=token)
            for made in pour.feed(piece):
                self._entry.put_spans(made.spans, made.data)
                for span, data in made.parts():
                    token.run_sync_soon(self._landings.land, span.number, data)

        self._count(self._blob.size)
        async with background_tasks() as nursery:
            if purse is not None:
                nursery.start_soon(purse.close_when_cancelled)
            await self._blob.pull(consume)


class _Purse:
    """Pays for a thread, which is waited for where its stream is cancelled: then it need not pay any more."""

    def __init__(self, pay: Callable[[int], Awaitable[None]]) -> None:
        self._pay = pay
        self._closed = False
        self._paying = trio.CancelScope()

    async def pay(self, size: int) -> None:
        """Wait until so many bytes more may come, or nobody wants them any more."""
        if not self._closed:
            with trio.CancelScope() as self._paying:
                await self._pay(size)

    async def close_when_cancelled(self) -> None:
        """Sleep until cancelled, and let the thread go."""
        try:
            await trio.sleep_forever()
        finally:
            self._closed = True
            self._paying.cancel()
