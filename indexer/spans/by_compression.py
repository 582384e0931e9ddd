"""One door to the span readers and scanners of all compressions."""

from collections.abc import Sequence
from typing import Final

from indexer.errors import FormatError, LimitExceeded, Unsupported
from indexer.spans.check import check_compressed, checked_content
from indexer.spans.raw import RawScanner, read_raw
from indexer.spans.scan import Receiver, Scanner
from indexer.toc import Compression, Entry, Span

SNIFF_SIZE: Final = 512
"""How many bytes `sniff` wants to see, where the blob has as many."""

MAX_OUTPUT: Final = 1 << 30
"""The most bytes that are decompressed at once."""

_FOREIGN: Final = ((b"BZh", "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"\x04\x22\x4d\x18", "lz4"))


def sniff(head: bytes) -> Compression:
    """The compression of a blob that begins with `head`; bytes are trusted over media types.

    Raises:
        Unsupported: a compression that is not read here.
    """
    if head[:2] == b"\x1f\x8b":
        return Compression.GZIP
    if head[:4] == b"\x28\xb5\x2f\xfd" or (head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5):
        return Compression.ZSTD
    for magic, name in _FOREIGN:
        if head.startswith(magic):
            raise Unsupported(f"a layer compressed with {name}; layers are gzip, zstd or plain tar")
    return Compression.NONE


def make_scanner(compression: Compression, receiver: Receiver, span_size: int) -> Scanner:
    """The scanner of a compression."""
    if compression is Compression.NONE:
        return RawScanner(receiver, span_size)
    if compression is Compression.GZIP:
        from indexer.spans.gzip_scan import GzipScanner  # noqa: PLC0415  # readers never need it

        return GzipScanner(receiver, span_size)
    from indexer.spans.zstd import ZstdScanner  # noqa: PLC0415  # most mounts need one of the two

    return ZstdScanner(receiver, span_size)


def read_spans(spans: Sequence[Span], data: bytes | memoryview, window: bytes) -> list[bytes]:
    """The uncompressed bytes of spans that share an entry, padding included; each matches its digest.

    Args:
        spans: one, or several with the same compressed start and entry.
        data: the compressed bytes from their start to the last one's end.
        window: their window, decompressed; b"" where they have none.

    Raises:
        FormatError: the bytes are damaged, or the spans begin in different ways.
        LimitExceeded: more than MAX_OUTPUT bytes would have to be decompressed at once.
        DigestMismatch: they are not those a span promises.
    """
    first = spans[0]
    if any(_entrance(span) != _entrance(first) for span in spans):
        raise FormatError("spans that begin at one place in different ways", first.compressed_start)
    for span in spans:
        check_compressed(span, data[: span.compressed_size])
    size = max(span.skip + span.content_size for span in spans)
    if size > MAX_OUTPUT:
        raise LimitExceeded(f"a span for which {size} bytes must be decompressed", first.compressed_start)
    output = _decompress(first, data, window, size) if size else b""
    return [checked_content(span, _cut(output, span)) for span in spans]


def _entrance(span: Span) -> tuple[object, ...]:
    return span.compressed_start, span.entry, span.bits, span.window_start, span.window_end


def _cut(output: bytes, span: Span) -> bytes:
    end = span.skip + span.content_size
    return output if (span.skip, end) == (0, len(output)) else output[span.skip : end]


def _decompress(first: Span, data: bytes | memoryview, window: bytes, size: int) -> bytes:
    """The first `size` bytes that come out of an entry."""
    if first.entry is Entry.RAW:
        return read_raw(data, size, first.compressed_start)
    if first.entry is Entry.ZSTD_FRAME:
        from indexer.spans.zstd import decompress_frames  # noqa: PLC0415  # most mounts need one of the two

        return decompress_frames(data, size, first.compressed_start)
    if not data:
        raise FormatError("no compressed bytes for a span", first.compressed_start)
    from indexer.spans.gzip_read import inflate  # noqa: PLC0415  # most mounts need one of the two

    return inflate(first, data, window, size)
