"""A gzip span inflated from its checkpoint."""

from indexer.deflate_resume import read_members, resume_members
from indexer.errors import FormatError
from indexer.toc import Entry, Span


def inflate_span(span: Span, data: bytes | memoryview, window: bytes) -> bytes:
    """The uncompressed bytes of a span.

    Args:
        span: the span; its entry is GZIP_MEMBER or DEFLATE.
        data: the compressed bytes [compressed_start, compressed_end).
        window: its sparse window, decompressed; b"" where it has none.

    Raises:
        FormatError: damaged or too short. Whether the bytes are the right ones, their root tells.
    """
    size = span.skip + span.size
    if span.entry is Entry.DEFLATE:
        if not data:
            raise FormatError("no compressed bytes for a span", span.compressed_start)
        output = resume_members(data, span.bits, window, size)
    else:
        output = read_members(data, size)
    return output[span.skip :] if span.skip else output
