"""A gzip span inflated from its checkpoint."""

from indexer.spans.deflate_resume import read_members, resume_members
from indexer.toc import Entry, Span


def inflate(first: Span, data: bytes | memoryview, window: bytes, size: int) -> bytes:
    """The first `size` bytes that come out of a span's entry.

    Args:
        first: a span with this entry, GZIP_MEMBER or DEFLATE.
        data: compressed bytes from the entry on, at least one.
        window: its window, decompressed; b"" where it has none.
        size: how many are wanted.

    Raises:
        FormatError: damaged or too short. Whether the bytes are the right ones, digests tell.
    """
    if first.entry is Entry.DEFLATE:
        return resume_members(data, first.bits, window, size)
    return read_members(data, size)
