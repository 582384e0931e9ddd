"""Checkpoints of a gzip layer, found while it streams by. `gzip_read` inflates from them.

A deflate stream can be entered at any block (RFC 1951 section 3.2.3) given the bit it starts at and the
32 KiB of output before it. A checkpoint is the first block, or the first member, that starts at least
`span_size` bytes of output after the checkpoint before. At a member nothing is needed to enter.
"""

from typing import Final

from indexer.errors import FormatError, Unsupported
from indexer.gzip_windows import WINDOW_SIZE, sparse_window
from indexer.libz import BlockInflater
from indexer.scan import Checkpoint, Receiver
from indexer.toc import Entry

_BUFFER_SIZE: Final = WINDOW_SIZE + (512 << 10)
_FEED_SIZE: Final = 256 << 10


class GzipScanner:
    """Inflates gzip members in a row and reports output, checkpoints and sparse windows.

    Zero bytes after a member are padding; anything else there must be another member (RFC 1952 section 2.2).
    """

    def __init__(self, receiver: Receiver, span_size: int) -> None:
        if span_size < WINDOW_SIZE:
            raise Unsupported(f"spans of {span_size} bytes are smaller than a window of {WINDOW_SIZE}")
        self._receiver = receiver
        self._span_size = span_size
        self._inflater = BlockInflater(_BUFFER_SIZE)
        self._consumed = 0  # compressed bytes so far
        self._produced = 0  # uncompressed bytes so far
        self._reported = 0  # where in the buffer the output not yet reported begins
        self._member_start = 0  # compressed offset
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
        for start in range(0, len(data), _FEED_SIZE):
            self._feed(data[start : start + _FEED_SIZE])

    def close(self) -> None:
        """The input has ended.

        Raises:
            FormatError: in the middle of a member, or before the first.
        """
        if self._in_member or not self._members:
            raise FormatError("gzip stream is cut short", self._consumed)
        self._resolve_window()
        self._report()

    def _feed(self, data: bytes) -> None:
        position = 0
        pending_from = 0
        while True:
            if not self._in_member:
                position = self._skip_padding(data, position)
                if position == len(data):
                    break
                self._begin_member()
                if self._pending is None:
                    pending_from = position
            room_before = self._inflater.filled
            try:
                consumed, ended = self._inflater.inflate(data, position)
            except FormatError as error:
                raise FormatError(error.what, self._consumed) from None
            produced = self._inflater.filled - room_before
            self._produced += produced
            position += consumed
            self._consumed += consumed
            if consumed:
                self._last_byte = data[position - 1 : position]
            if self._pending and self._produced - self._pending.start >= WINDOW_SIZE:
                self._pending.extend(data[pending_from:position])
                self._resolve_window()
            if ended:
                self._in_member = False
                self._members += 1
                self._inflater.next_member()
                if self._pending:
                    self._pending.extend(data[pending_from:position])
                    self._resolve_window()
            elif self._inflater.at_block_start and self._produced - self._point_at >= self._span_size:
                if self._pending:
                    self._resolve_window()
                self._begin_span()
                pending_from = position
            if self._inflater.filled == len(self._inflater.buffer):
                self._make_room()
            elif not consumed and not produced and not ended:
                break  # the input is used up
        if self._pending:
            self._pending.extend(data[pending_from:])

    def _skip_padding(self, data: bytes, position: int) -> int:
        if self._members:
            rest = len(data) - position - len(data[position:].lstrip(b"\0"))
            position += rest
            self._consumed += rest
        return position

    def _begin_member(self) -> None:
        self._in_member = True
        self._member_start = self._consumed
        self._member_output = self._produced
        first = self._members == 0
        if first or self._produced - self._point_at >= self._span_size:
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
        self._pending = _PendingWindow(self._produced, window, bits, self._last_byte if bits else b"")

    def _resolve_window(self) -> None:
        if self._pending:
            self._receiver.window(self._pending.start, self._pending.sparse())
            self._pending = None

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
    """A checkpoint whose window waits for the 32 KiB of output that show what of it is used."""

    def __init__(self, start: int, window: bytes, bits: int, shared: bytes) -> None:
        self.start: Final = start
        self._window = window
        self._bits = bits
        self._data = bytearray(shared)

    def extend(self, data: bytes) -> None:
        self._data += data

    def sparse(self) -> bytes:
        return sparse_window(self._window, bytes(self._data), self._bits)
