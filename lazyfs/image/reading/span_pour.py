"""Spans made from compressed bytes that pass by in order."""

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Final

from indexer.spans.rows import Group, Made
from indexer.spans.zstd import FrameReader
from indexer.toc import Entry, Proof, Span

_COMPRESSED_START: Final = attrgetter("compressed_start")

Unpack = Callable[[Sequence[Group], memoryview], Iterable[Made]]
"""Makes the spans of some entries of their compressed bytes, from the first entry to the last one's end."""


class SpanPour:
    """Takes the compressed bytes from some place on; gives each span as soon as all of it has come.

    Args:
        spans: those that are wanted, in order.
        start: the place of the first byte to come.
        unpack: decompresses and verifies; but a zstd frame of several spans is cut here, as it comes.
    """

    def __init__(self, spans: Iterable[Span], start: int, unpack: Unpack) -> None:
        self._groups = (list(group) for _, group in groupby(spans, key=_COMPRESSED_START))
        self._unpack = unpack
        self._held = bytearray()
        self._at = start  # of the first byte held
        self._group: list[Span] = []
        self._end = 0  # of the group
        self._frame: FrameReader | None = None
        self._next()

    def __repr__(self) -> str:
        return f"<SpanPour at byte {self._at}, holding {len(self._held)}>"

    def feed(self, piece: memoryview) -> list[Made]:
        """Take the next bytes, cut anywhere; the spans that are whole now, verified.

        Raises:
            IndexerError: they are damaged.
        """
        self._held += piece
        finished: list[Made] = []
        while self._group and self._drop(self._group[0].compressed_start):
            if self._frame is not None:
                made = self._feed_frame(self._frame)
                finished += (Made((span,), data) for span, data in made)
                if self._at < self._end:
                    break
                self._frame.close()
                self._next()
                continue
            whole, end = self._take_whole()
            if not whole:
                break
            with memoryview(self._held) as held:
                finished += self._unpack(whole, held[: end - self._at])
        return finished

    def _feed_frame(self, frame: FrameReader) -> list[tuple[Span, bytes]]:
        size = min(self._end - self._at, len(self._held))
        made = frame.feed(bytes(memoryview(self._held)[:size]))
        self._drop(self._at + size)
        return made

    def _take_whole(self) -> tuple[list[Group], int]:
        """The groups all of which has come, from this one on, and where they end."""
        whole: list[Group] = []
        came, end = self._at + len(self._held), self._at
        while self._group and self._frame is None and self._end <= came:
            whole.append(self._group)
            end = max(end, self._end)
            self._next()
        return whole, end

    def _next(self) -> None:
        self._group = next(self._groups, [])
        self._end = max((span.compressed_end for span in self._group), default=0)
        cut = len(self._group) > 1 and self._group[0].entry is Entry.ZSTD_FRAME
        whole = any(span.proof is Proof.COMPRESSED for span in self._group)
        self._frame = FrameReader(self._group) if cut and not whole else None

    def _drop(self, place: int) -> bool:
        """Forget what stands before `place`; whether that has come, or is next."""
        count = min(max(place - self._at, 0), len(self._held))
        del self._held[:count]
        self._at += count
        return self._at >= place
