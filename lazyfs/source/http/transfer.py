"""From the body of an answer to the bytes that were asked for: checked, cut, and resumable."""

import re
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from indexer.errors import FormatError
from lazyfs.errors import RangeRefused, SourceError
from lazyfs.source.base import PIECE_SIZE
from lazyfs.source.http.answers import Answer
from lazyfs.source.http.pool import Body
from lazyfs.source.http.retry import Transient
from lazyfs.source.http.urls import shown

_MAX_SKIP: Final = 4 << 20
_MIN_SKIP: Final = 64 << 10
_TOLERATED: Final = 2

_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", re.ASCII)


class Skipped:
    """What was read past in one blob, since its server last kept to a range.

    An answer or two without the range happen, from a cache that was being filled. Whoever gets no others is
    better off with the whole blob.

    Args:
        size: bytes of the blob.
    """

    def __init__(self, size: int) -> None:
        self._worth = max(size // 8, _MIN_SKIP)
        self._times = self._bytes = 0

    def most(self) -> int:
        """How many bytes are worth being read past now."""
        left = _MAX_SKIP - self._bytes
        worth = min(left, self._worth - self._bytes) if self._times >= _TOLERATED else left
        return max(worth, 0)

    def note(self, answer: Answer, skip: int) -> None:
        """An answer came, of which so many bytes are read past."""
        if answer.status == 206:
            self._times = self._bytes = 0
        elif skip:
            self._times += 1
            self._bytes += skip


class Sink(Protocol):
    """Where bytes go, in order."""

    def space(self) -> memoryview:
        """Room for the next bytes, at most PIECE_SIZE; empty when all have come."""

    def filled(self, count: int) -> None:
        """The first `count` bytes of the last `space()` have come."""


class RangeSink:
    """Gathers a whole range in memory."""

    def __init__(self, size: int) -> None:
        self.view = memoryview(bytearray(size))
        self.taken = 0

    def space(self) -> memoryview:
        """As Sink says."""
        return self.view[self.taken : self.taken + PIECE_SIZE]

    def filled(self, count: int) -> None:
        """As Sink says."""
        self.taken += count


class PieceSink:
    """Hands over piece by piece, each full but the last, whatever breaks in between."""

    def __init__(self, size: int, consume: Callable[[memoryview], None]) -> None:
        self.taken = 0
        self._size = size
        self._consume = consume
        self._piece = memoryview(bytearray(min(size, PIECE_SIZE)))
        self._held = 0

    def space(self) -> memoryview:
        """As Sink says."""
        return self._piece[self._held : self._held + self._size - self.taken]

    def filled(self, count: int) -> None:
        """As Sink says; what the consumer raises passes through."""
        self._held += count
        self.taken += count
        if self._held == len(self._piece) or self.taken == self._size:
            held, self._held = self._held, 0
            self._consume(self._piece[:held])


class Cut(NamedTuple):
    """Which part of a body is wanted: `length` bytes after `skip`; `whole` if nothing may follow them."""

    skip: int
    length: int
    whole: bool


def plan_cut(answer: Answer, start: int, end: int, size: int, what: str, *, most_skip: int) -> Cut:
    """Which part of a 200 or 206 answer holds bytes [start, end) of a blob, or begins them.

    Args:
        answer: what came.
        start: first byte that was asked for.
        end: end of what was asked for.
        size: bytes of the blob by its descriptor.
        what: the blob, for messages.
        most_skip: how many bytes may be read past to come to `start`.

    Raises:
        FormatError: the blob there has another size.
        RangeRefused: the server ignored the range, and it is too far in.
        Transient: another part came than was asked for.
        SourceError: the body is encoded, so that its offsets are not the blob's.
    """
    encoding = answer.header("content-encoding").strip().lower()
    if encoding not in ("", "identity"):
        raise SourceError(f"{what}: the server encodes blobs ({encoding[:20]!r})", url=shown(answer.url))
    if answer.status == 206:
        return _partial(answer, start, end, size, what)
    length = answer.header("content-length")
    if length.isascii() and length.isdigit():
        _check_size(int(length[:19]), size, what)
    if start > most_skip:
        raise RangeRefused(f"{what}: the server ignores ranges", url=shown(answer.url), status=200)
    return Cut(start, end - start, end == size)


def _partial(answer: Answer, start: int, end: int, size: int, what: str) -> Cut:
    found = _CONTENT_RANGE.fullmatch(answer.header("content-range").strip())
    if not found:
        raise Transient("206 without a usable Content-Range", status=206)
    if found[3] != "*":
        _check_size(int(found[3]), size, what)
    first, last = int(found[1]), int(found[2])
    if first != start or not first <= last < end:
        raise Transient(f"asked for bytes {start}-{end - 1}, got {first}-{last}", status=206)
    return Cut(0, last + 1 - start, whole=True)


def _check_size(there: int, size: int, what: str) -> None:
    if there != size:
        raise FormatError(f"{what}: {there} bytes at its source, {size} by its descriptor")


def pour(body: Body, cut: Cut, sink: Sink) -> None:
    """Move a part of a body into a sink.

    Raises:
        Transient: the connection broke before the end; what had come is in the sink.
        FormatError: more came than was announced.
    """
    _skip(body, cut.skip)
    left = cut.length
    while left:
        count = body.readinto(sink.space()[:left])
        if not count:
            raise Transient(f"the answer ended {left} bytes early")
        left -= count
        sink.filled(count)
    if cut.whole and body.readinto(memoryview(bytearray(1))):
        raise FormatError("more bytes came than were asked for")


def _skip(body: Body, count: int) -> None:
    scratch = memoryview(bytearray(min(count, PIECE_SIZE)))
    while count:
        got = body.readinto(scratch[:count])
        if not got:
            raise Transient(f"the answer ended {count} bytes before the range")
        count -= got
