"""Checkpoints of a gzip layer, found while it streams by. `gzip_read` inflates from them.

A deflate stream can be entered at any block (RFC 1951 section 3.2.3) given the bit it starts at and the
32 KiB of output before it. A checkpoint is the first block, or the first member, that starts at least
`span_size` bytes of output after the checkpoint before. At a member nothing is needed to enter.

A few long calls of inflate make a span: the 32 KiB that tell what of the window is used; the rest up to one
byte before the next checkpoint may be; then up to the end of that block. Calls run without the GIL, and to
get it back costs more than a block, so there is none for each block.
"""

import re
from functools import partial
from typing import TYPE_CHECKING, Final

from indexer.errors import FormatError
from indexer.spans.libz import WINDOW_SIZE, BlockInflater
from indexer.spans.scan import Checkpoint, Receiver
from indexer.toc import Entry

if TYPE_CHECKING:
    from indexer.spans.gzip_windows import WindowSieve

_BUFFER_SIZE: Final = WINDOW_SIZE + (512 << 10)
_ZEROS: Final = re.compile(rb"\0*")


class GzipScanner:
    """Inflates gzip members in a row and reports output, checkpoints and sparse windows.

    Zero bytes after a member are padding; anything else there must be another member (RFC 1952 section 2.2).
    """

    def __init__(self, receiver: Receiver, span_size: int) -> None:
        self._receiver = receiver
        self._span_size = span_size
        self._inflater = BlockInflater(_BUFFER_SIZE)
        self._sieve: WindowSieve | None = None
        self._consumed = 0  # compressed bytes so far
        self._produced = 0  # uncompressed bytes so far
        self._reported = 0  # where in the buffer the output not yet reported begins
        self._member_output = 0  # uncompressed offset at which the member began
        self._in_member = False
        self._members = 0
        self._point_at = 0  # uncompressed start of the newest checkpoint
        self._last_byte = b""
        self._pending: _PendingWindow | None = None

    def feed(self, data: bytes) -> None:
        """Take the next compressed bytes, cut anywhere.

        Raises:
            FormatError: not gzip, or damaged.
        """
        position = 0
        moved = True
        while moved:
            if not self._in_member:
                position = self._skip_padding(data, position)
                if position == len(data):
                    return
                self._begin_member()
            before = self._consumed, self._produced
            position = self._step(data, position)
            moved = not self._in_member or before != (self._consumed, self._produced)

    def close(self) -> None:
        """The input has ended.

        Raises:
            FormatError: in the middle of a member, or before the first.
        """
        if self._in_member or not self._members:
            raise FormatError("gzip stream is cut short", self._consumed)
        self._report()

    def _step(self, data: bytes, position: int) -> int:
        """Inflate some of `data[position:]`: the new position."""
        since = self._produced - self._point_at
        before_candidates = self._span_size - 1
        if since < before_candidates:
            limit = before_candidates if self._pending is None else min(before_candidates, WINDOW_SIZE)
            return self._inflate(data, position, limit - since)
        if since == before_candidates:
            # Blocks may start here and have no output. Where the input is cut, inflate would stop at some
            # of them; so pass them all.
            position = self._inflate(data, position, 0)
            if position == len(data) or not self._in_member:
                return position
        position = self._inflate(data, position, _BUFFER_SIZE, stop_at_block=True)
        if self._in_member and self._inflater.at_block_start:
            self._begin_span()
        return position

    def _inflate(self, data: bytes, position: int, limit: int, *, stop_at_block: bool = False) -> int:
        """Inflate at most `limit` bytes of output from `data[position:]`: the new position."""
        inflater = self._inflater
        if inflater.filled == _BUFFER_SIZE:
            self._make_room()
        before = inflater.filled
        room = min(limit, _BUFFER_SIZE - before)
        try:
            consumed, ended = inflater.inflate(data, position, room, stop_at_block=stop_at_block)
        except FormatError as error:
            raise FormatError(error.what, self._consumed) from None
        end = position + consumed
        self._consumed += consumed
        self._produced += inflater.filled - before
        if consumed:
            self._last_byte = data[end - 1 : end]
        if self._pending is not None:
            self._pending.data += data[position:end]
            if ended or self._produced - self._point_at >= WINDOW_SIZE:
                self._resolve_window(self._pending)
        if ended:
            self._in_member = False
            self._members += 1
            inflater.next_member()
        return end

    def _skip_padding(self, data: bytes, position: int) -> int:
        if not self._members:
            return position
        match = _ZEROS.match(data, position)
        assert match is not None
        self._consumed += match.end() - position
        return match.end()

    def _begin_member(self) -> None:
        self._in_member = True
        self._member_output = self._produced
        if self._members == 0 or self._produced - self._point_at >= self._span_size:
            self._report()
            self._point_at = self._produced
            self._receiver.checkpoint(
                Checkpoint(self._produced, self._consumed, self._consumed, Entry.GZIP_MEMBER)
            )

    def _begin_span(self) -> None:
        self._report()
        bits = self._inflater.unused_bits
        size = min(WINDOW_SIZE, self._produced - self._member_output)
        filled = self._inflater.filled
        window = bytes(self._inflater.buffer[filled - size : filled])
        self._point_at = self._produced
        self._receiver.checkpoint(
            Checkpoint(
                self._produced,
                self._consumed - (1 if bits else 0),
                self._consumed,
                Entry.DEFLATE,
                bits,
            )
        )
        self._pending = _PendingWindow(window, bits, bytearray(self._last_byte if bits else b""))

    def _resolve_window(self, pending: "_PendingWindow") -> None:
        self._receiver.window(
            self._point_at, partial(self._sparse, pending.window, bytes(pending.data), pending.bits)
        )
        self._pending = None

    def _sparse(self, window: bytes, data: bytes, bits: int) -> bytes:
        """On the receiver's thread."""
        if self._sieve is None:
            from indexer.spans.gzip_windows import WindowSieve  # noqa: PLC0415  # numpy takes 0.1 s to import

            self._sieve = WindowSieve()
        return self._sieve.sparse(window, data, bits)

    def _report(self) -> None:
        filled = self._inflater.filled
        if filled > self._reported:
            self._receiver.output(bytes(self._inflater.buffer[self._reported : filled]))
            self._reported = filled

    def _make_room(self) -> None:
        """Keep the last 32 KiB as the window to come; report and drop the rest."""
        self._report()
        buffer = self._inflater.buffer
        buffer[:WINDOW_SIZE] = buffer[self._inflater.filled - WINDOW_SIZE : self._inflater.filled]
        self._inflater.filled = self._reported = WINDOW_SIZE


class _PendingWindow:
    """The newest checkpoint's window, until 32 KiB of output show what of it is used."""

    __slots__ = ("bits", "data", "window")

    def __init__(self, window: bytes, bits: int, data: bytearray) -> None:
        self.window = window
        self.bits = bits
        self.data = data
