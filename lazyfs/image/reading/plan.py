"""Which bytes a read needs, decided without touching a network or a disk."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from heapq import merge
from itertools import chain
from typing import Final, NamedTuple

from indexer.toc import Extent, Span, SpanTable

_NEAR: Final = 256  # spans around a reader that are looked at: of a layer that is nearly here there is no end
_FILE_FACTOR: Final = 3  # times the room: starts of python and pysci by index are sooner than with 1, 2 or 5
_SMALL_FILE: Final = 8 << 20  # of a larger one, much is never read


class Fetch(NamedTuple):
    """Spans that are fetched by one range request.

    Attributes:
        spans: in order of their place in the layer; those that share an entry are together.
        compressed_start: first byte of the range.
        compressed_end: its end.
    """

    spans: tuple[Span, ...]
    compressed_start: int
    compressed_end: int


def plan_fetches(spans: Sequence[Span], *, max_bytes: int, max_gap: int) -> list[Fetch]:
    """Few requests for many spans: neighbours are joined.

    Args:
        spans: the spans wanted, ascending.
        max_bytes: compressed bytes of one request, which a single larger span may exceed.
        max_gap: compressed bytes between two wanted spans that are rather fetched in vain than skipped.
    """
    groups: list[list[Span]] = []
    end = 0  # of the last group's range
    for span in spans:
        last = groups[-1] if groups else None
        if last and (
            span.compressed_start == last[-1].compressed_start
            or (
                span.compressed_start - end <= max_gap
                and span.compressed_end - last[0].compressed_start <= max_bytes
            )
        ):
            last.append(span)
            end = max(end, span.compressed_end)
        else:
            groups.append([span])
            end = span.compressed_end
    return [
        Fetch(tuple(group), group[0].compressed_start, max(span.compressed_end for span in group))
        for group in groups
    ]


def beside(
    spans: SpanTable,
    wanted: Sequence[int],
    room: int,
    left: Callable[[range], Iterable[int]],
    file: range = range(0),
) -> list[int]:
    """Spans that are worth bringing with those that a reader waits for: while it does, the line is idle.

    The rest of the same file first, what follows before what precedes; of a small file it is so likely to be
    read that it may take more. Then two spans that follow for one before.

    Args:
        spans: the layer's.
        wanted: the spans that are waited for, ascending, not none.
        room: compressed bytes that cost next to nothing.
        left: gives, of neighbouring spans and in their order, those that are neither here nor on their way.
        file: the spans of the file that is read, if it is known.
    """
    after, before = wanted[-1] + 1, wanted[0] - 1
    first, end = (file.start, file.stop) if file else (wanted[0], after)
    rest = chain(left(range(after, end)[:_NEAR]), left(range(before, first - 1, -1)[:_NEAR]))
    small = spans[end - 1].uncompressed_end - spans[first].uncompressed_start <= _SMALL_FILE
    found, spent = _fitting(spans, rest, room * (_FILE_FACTOR if small else 1))
    around = _around(max(after, end), min(before, first - 1), len(spans), left)
    return sorted(found + _fitting(spans, around, room - spent)[0])


def _around(after: int, before: int, count: int, left: Callable[[range], Iterable[int]]) -> Iterator[int]:
    """What is left, from `after` up and from `before` down: of three places the last is below."""

    def turn(number: int) -> int:
        above = number - after
        return above // 2 * 3 + above % 2 if above >= 0 else (before - number) * 3 + 2

    up = range(after, count)[: -(-_NEAR * 2 // 3)]
    down = range(before, -1, -1)[: _NEAR // 3]
    return merge(left(up), left(down), key=turn)


def _fitting(spans: SpanTable, numbers: Iterable[int], room: int) -> tuple[list[int], int]:
    """Those before the first one that does not fit or cannot be had alone, and the size of all up to it."""
    found = []
    size = 0
    for number in numbers:
        size += spans[number].compressed_size
        if len(spans.sharing_entry(number)) > 1:
            size = max(size, room + 1)
        if size > room:
            break
        found.append(number)
    return found, size


class Piece(NamedTuple):
    """Part of a read of the tail: `length` bytes of the stream at `start`, or zeros where start is None."""

    start: int | None
    length: int


def tail_pieces(extents: Sequence[Extent], start: int, end: int) -> Iterator[Piece]:
    """What the tail (indexer.toc) shows in [start, end): stream bytes by its extents, zeros between them."""
    first = max(bisect_right(extents, start, key=lambda extent: extent.start) - 1, 0)
    for extent in map(extents.__getitem__, range(first, len(extents))):  # a slice would copy all the rest
        if extent.start >= end:
            break
        if not extent.length or extent.start + extent.length <= start:
            continue
        if extent.start > start:
            yield Piece(None, extent.start - start)
            start = extent.start
        stop = min(end, extent.start + extent.length)
        yield Piece(extent.tar_start + start - extent.start, stop - start)
        start = stop
    if start < end:
        yield Piece(None, end - start)


class Run(NamedTuple):
    """Bytes [start, end) of the stream, which stand in several places of a read of the tail.

    Attributes:
        start: first byte.
        end: end.
        places: (offset in the read, length) of the parts, which are all of them in their order.
    """

    start: int
    end: int
    places: Sequence[tuple[int, int]]

    def lay(self, data: bytes, output: bytearray) -> None:
        """Put the bytes of the run into what is read."""
        at = 0
        for offset, length in self.places:
            output[offset : offset + length] = data[at : at + length]
            at += length


def tail_runs(pieces: Iterable[Piece]) -> Iterator[Run]:
    """What a read takes from the stream: pieces that follow each other there, as a file's do, are one."""
    start = end = offset = 0
    places: list[tuple[int, int]] = []
    for piece in pieces:
        if piece.start is not None:
            if places and piece.start != end:
                yield Run(start, end, places)
                places = []
            if not places:
                start = piece.start
            end = piece.start + piece.length
            places.append((offset, piece.length))
        offset += piece.length
    if places:
        yield Run(start, end, places)
