"""Where in a blob its own table of contents lies."""

from enum import Enum
from typing import Final, NamedTuple

from indexer.errors import FormatError, LimitExceeded
from indexer.foreign.json_entries import MAX_TOC

FOOTER_FRAME: Final = 8
"""Bytes of a skippable zstd frame's header (RFC 8878 section 3.1.2)."""


class Form(Enum):
    """How a table lies in its blob. Values are the names that people see."""

    ESTARGZ = "estargz"  # in a tar in a gzip member
    ZSTD_CHUNKED = "zstd-chunked"  # compressed in a skippable frame


class TocPlace(NamedTuple):
    """Where a table of contents lies.

    Attributes:
        form: how.
        start: first byte, in the blob.
        end: its end.
        size: bytes of the JSON; 0 where it is not said.
        payload_end: where the layer's own contents end at most.
    """

    form: Form
    start: int
    end: int
    size: int
    payload_end: int


def checked_place(place: TocPlace, blob_size: int) -> TocPlace:
    """A place that is one of a blob of `blob_size` bytes.

    Raises:
        FormatError: it lies outside the blob, or is empty.
        LimitExceeded: the table is too large.
    """
    if not 0 <= place.payload_end <= place.start < place.end <= blob_size:
        raise FormatError(f"a table of contents at bytes {place.start}-{place.end} of a blob of {blob_size}")
    if max(place.end - place.start, place.size) > MAX_TOC:
        raise LimitExceeded(f"a table of contents above {MAX_TOC} bytes")
    return place
