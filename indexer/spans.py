"""One door to the span readers and scanners of all compressions."""

from typing import Final

from indexer.digest import span_root
from indexer.errors import DigestMismatch, FormatError, Unsupported
from indexer.raw_spans import RawScanner, read_raw
from indexer.scan import Receiver, Scanner
from indexer.toc import Compression, Entry, Span

SNIFF_SIZE: Final = 512
"""How many bytes `sniff` wants to see, where the blob has as many."""

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
    """The scanner of a compression. Each imports what it needs on first use: readers never need it."""
    if compression is Compression.NONE:
        return RawScanner(receiver, span_size)
    if compression is Compression.GZIP:
        from indexer.gzip_spans import GzipScanner  # noqa: PLC0415  # numpy takes 0.1 s to import

        return GzipScanner(receiver, span_size)
    from indexer.zstd_spans import ZstdScanner  # noqa: PLC0415  # as above, for symmetry

    return ZstdScanner(receiver, span_size)


def read_span(span: Span, data: bytes | memoryview, window: bytes) -> bytes:
    """A span's uncompressed bytes, which match its root.

    Args:
        span: the span.
        data: the compressed bytes [compressed_start, compressed_end).
        window: its window, decompressed; b"" where it has none.

    Raises:
        FormatError: the bytes are damaged.
        DigestMismatch: they are not those the span promises.
    """
    output = _decompress(span, data, window)
    root = span_root(output)
    if root != span.root:
        raise DigestMismatch(f"span {span.number}", span.root.hex(), root.hex())
    return output


def _decompress(span: Span, data: bytes | memoryview, window: bytes) -> bytes:
    if span.entry is Entry.RAW:
        return read_raw(span, data)
    if span.entry is Entry.ZSTD_FRAME:
        from indexer.zstd_spans import decompress_span  # noqa: PLC0415  # most mounts need one of the two

        return decompress_span(span, data)
    if not data:
        raise FormatError("no compressed bytes for a span", span.compressed_start)
    from indexer.gzip_read import inflate_span  # noqa: PLC0415  # most mounts need one of the two

    return inflate_span(span, data, window)
