"""Spans of an uncompressed layer: equal pieces, entered anywhere."""

from indexer.errors import FormatError
from indexer.spans.scan import Checkpoint, Receiver
from indexer.toc import Entry


class RawScanner:
    """Reports the bytes as they are, and a checkpoint every `span_size` bytes."""

    def __init__(self, receiver: Receiver, span_size: int) -> None:
        self._receiver = receiver
        self._span_size = span_size
        self._consumed = 0

    def feed(self, data: bytes) -> None:
        """Take the next bytes, cut anywhere."""
        position = 0
        while position < len(data):
            into_span = self._consumed % self._span_size
            if into_span == 0:
                here = self._consumed
                self._receiver.checkpoint(Checkpoint(here, here, here, Entry.RAW))
            piece = data[position : position + self._span_size - into_span]
            self._receiver.output(piece)
            position += len(piece)
            self._consumed += len(piece)

    def close(self) -> None:
        """The input has ended; nothing can be missing."""


def read_raw(data: bytes | memoryview, size: int, start: int) -> bytes:
    """A RAW span's `size` bytes: the data itself, which stands at `start` of the blob.

    Raises:
        FormatError: it is not as long as the span.
    """
    if len(data) != size:
        raise FormatError(f"{len(data)} bytes for a span of {size}", start)
    return bytes(data)
