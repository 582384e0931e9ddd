"""Spans of a zstd layer: whole frames where they are small, pieces of a frame where it is large.

Only a frame's start can be entered (RFC 8878 section 3.1.1): a block depends on the window, the repeated
offsets and maybe the tables of those before. A span inside a large frame therefore names the frame's start
as its entry and how many bytes to skip. Block headers are walked here, so that every frame's and block's
place is known and at most one block's output, 128 KiB, is in memory.
"""

import struct
from collections.abc import Callable, Generator, Sequence
from itertools import pairwise
from typing import Final

import zstandard

from indexer.errors import FormatError, LimitExceeded, Unsupported
from indexer.spans.check import checked_content
from indexer.spans.scan import Checkpoint, Receiver
from indexer.toc import Entry, Proof, Span

_FRAME_MAGIC: Final = 0xFD2FB528
_SKIPPABLE_MAGIC: Final = 0x184D2A50  # the low four bits are free
_MAX_WINDOW: Final = 256 << 20
_MAX_BLOCK: Final = 128 << 10
_CHECKSUM_SIZE: Final = 4
_RLE: Final = 1
_RESERVED: Final = 3

_Reading = Generator[None, None, bytes]


class ZstdScanner:
    """Walks frames and blocks, and reports output and checkpoints."""

    def __init__(self, receiver: Receiver, span_size: int) -> None:
        self._receiver = receiver
        self._span_size = span_size
        self._buffer = bytearray()
        self._consumed = 0
        self._produced = 0
        self._point_at: int | None = None
        self._in_frame = False
        self._frames = 0
        self._walk = self._frame_after_frame()
        next(self._walk)

    def feed(self, data: bytes) -> None:
        """Take the next compressed bytes, cut anywhere.

        Raises:
            FormatError: not zstd, or damaged.
        """
        self._buffer += data
        next(self._walk)

    def close(self) -> None:
        """The input has ended.

        Raises:
            FormatError: in the middle of a frame, or before the first.
        """
        if self._in_frame or self._buffer or not self._frames:
            raise FormatError("zstd stream is cut short", self._consumed)

    def _take(self, size: int) -> _Reading:
        while len(self._buffer) < size:
            yield
        piece = bytes(self._buffer[:size])
        del self._buffer[:size]
        self._consumed += size
        return piece

    def _frame_after_frame(self) -> Generator[None, None, None]:
        while True:
            while not self._buffer:
                yield
            start = self._consumed
            magic_bytes = yield from self._take(4)
            (magic,) = struct.unpack("<I", magic_bytes)
            self._frames += 1
            self._in_frame = True
            if magic & ~0xF == _SKIPPABLE_MAGIC:
                yield from self._skip()
            elif magic == _FRAME_MAGIC:
                yield from self._frame(start, magic_bytes)
            else:
                raise FormatError("neither a zstd frame nor a skippable one", start)
            self._in_frame = False

    def _skip(self) -> Generator[None, None, None]:
        (left,) = struct.unpack("<I", (yield from self._take(4)))
        while left:
            while not self._buffer:
                yield
            piece = yield from self._take(min(left, len(self._buffer)))
            left -= len(piece)

    def _frame(self, start: int, magic: bytes) -> Generator[None, None, None]:
        descriptor = yield from self._take(1)
        rest = yield from self._take(_header_size(descriptor[0]))
        header = magic + descriptor + rest
        _check_header(header, start)
        frame_output = self._produced
        self._point(Checkpoint(self._produced, start, start, Entry.ZSTD_FRAME))
        inflater = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).decompressobj()
        self._decompress(inflater, header, start)
        last = False
        while not last:
            block_header = yield from self._take(3)
            block = int.from_bytes(block_header, "little")
            last, kind, size = bool(block & 1), block >> 1 & 3, block >> 3
            if kind == _RESERVED or size > _MAX_BLOCK:
                raise FormatError("zstd block of an impossible kind or size", self._consumed)
            self._point(
                Checkpoint(
                    self._produced, start, self._consumed - 3, Entry.ZSTD_FRAME,
                    skip=self._produced - frame_output,
                )
            )  # fmt: skip
            body = yield from self._take(1 if kind == _RLE else size)
            self._decompress(inflater, block_header + body, start)
        if descriptor[0] & 4:
            self._decompress(inflater, (yield from self._take(_CHECKSUM_SIZE)), start)

    def _point(self, point: Checkpoint) -> None:
        if self._point_at is None or self._produced - self._point_at >= self._span_size:
            self._point_at = self._produced
            self._receiver.checkpoint(point)

    def _decompress(self, inflater: "zstandard.ZstdDecompressionObj", data: bytes, start: int) -> None:
        try:
            output = inflater.decompress(data)
        except zstandard.ZstdError as error:
            raise FormatError(f"zstd: {error}", start) from error
        if output:
            self._produced += len(output)
            self._receiver.output(output)


def _header_size(descriptor: int) -> int:
    """Bytes of a frame header after its descriptor (RFC 8878 section 3.1.1.1)."""
    content_flag, single_segment, dictionary_flag = descriptor >> 6, descriptor >> 5 & 1, descriptor & 3
    content_size = (single_segment, 2, 4, 8)[content_flag]
    return (1 - single_segment) + (0, 1, 2, 4)[dictionary_flag] + content_size


def _check_header(header: bytes, start: int) -> None:
    try:
        parameters = zstandard.get_frame_parameters(header)
    except zstandard.ZstdError as error:
        raise FormatError(f"zstd frame header: {error}", start) from error
    if parameters.dict_id:
        raise Unsupported("a zstd layer that needs a dictionary")
    if parameters.window_size > _MAX_WINDOW:
        raise LimitExceeded(f"zstd frame with a window of {parameters.window_size} bytes", start)


def decompress_frames(data: bytes | memoryview, size: int, start: int) -> bytes:
    """The first `size` uncompressed bytes of frames, the first of which stands at `start` of the blob.

    Raises:
        FormatError: damaged or too short. Whether the bytes are the right ones, digests tell.
    """
    pieces = []
    left = size
    try:
        reader = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).stream_reader(
            data, read_across_frames=True
        )
        while left and (piece := reader.read(left)):
            pieces.append(piece)
            left -= len(piece)
    except zstandard.ZstdError as error:
        raise FormatError(f"zstd: {error}", start) from error
    if left:
        raise FormatError(f"zstd ends {left} bytes before the span does", start)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class FrameReader:
    """Cuts a large frame, fed in order from its start in any cuts, into the spans that share it.

    Args:
        spans: the spans of one entry, in order; what lies between and after them is passed by.

    Raises:
        FormatError: they are out of order, or of a kind that is verified before it is decompressed.
    """

    def __init__(self, spans: Sequence[Span]) -> None:
        if any(later.skip < span.skip + span.content_size for span, later in pairwise(spans)):
            raise FormatError("spans of one frame overlap", spans[0].compressed_start)
        if any(span.proof is Proof.COMPRESSED for span in spans):
            raise FormatError("pieces of a frame with digests of compressed bytes", spans[0].compressed_start)
        self._spans = iter(spans)
        self._span: Span | None = next(self._spans, None)
        self._partial = bytearray()
        self._position = 0  # in the frame's output, where `_partial` begins
        self._finished: list[tuple[Span, bytes]] = []
        self._scanner = ZstdScanner(self, span_size=1 << 62)

    def feed(self, data: bytes) -> list[tuple[Span, bytes]]:
        """The spans that these bytes complete, with their bytes, padding included, which match their digests.

        Raises:
            FormatError: damaged.
            DigestMismatch: a span is not what its digest promises.
        """
        self._finished = []
        self._scanner.feed(data)
        return self._finished

    def close(self) -> None:
        """The frame has ended, or what the spans say is needed of it.

        Raises:
            FormatError: before the last span.
        """
        if self._span is not None:
            raise FormatError(f"the frame ends before span {self._span.number}", self._span.compressed_start)

    def checkpoint(self, point: Checkpoint) -> None:
        """From the scanner; spans are known here."""

    def window(self, uncompressed_start: int, sparse: Callable[[], bytes]) -> None:
        """From the scanner; zstd has none."""

    def output(self, data: bytes) -> None:
        """From the scanner: the next bytes of the frame."""
        self._partial += data
        while self._span is not None:
            self._pass_by(self._span.skip - self._position)
            size = self._span.content_size
            if self._position < self._span.skip or len(self._partial) < size:
                return
            content = bytes(self._partial[:size])
            self._pass_by(size)
            self._finished.append((self._span, checked_content(self._span, content)))
            self._span = next(self._spans, None)
        self._partial.clear()

    def _pass_by(self, size: int) -> None:
        size = min(size, len(self._partial))
        del self._partial[:size]
        self._position += size
