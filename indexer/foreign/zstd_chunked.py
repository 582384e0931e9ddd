"""The table of contents of a zstd:chunked layer: where it lies, and how.

It is a zstd frame in a skippable frame after the layer's own. The manifest's annotation tells its place; so
does the footer, the payload of the last skippable frame (containers/storage, pkg/chunked/internal/minimal):

    40 bytes    offset, compressed and uncompressed length, type 1, "GnUlInUx": stargz-snapshotter, and
                containers/storage before 1.47
    64 bytes    the same, the place of a tar-split, "GNUlInUx": containers/storage since 1.50

The 56 bytes between were written wrong, and nobody reads them.
"""

import re
import struct
from typing import Final

import zstandard

from indexer.errors import FormatError, Unsupported
from indexer.foreign.place import FOOTER_FRAME, Form, TocPlace, checked_place

FOOTER_SIZE: Final = FOOTER_FRAME + 64

_SKIPPABLE: Final = 0x184D2A50
_MAGICS: Final = {b"GnUlInUx": 40, b"GNUlInUx": 64}
_TYPE: Final = 1  # "CRFS", the only one
_MAX_WINDOW: Final = 128 << 20
_POSITION: Final = re.compile(r"([0-9]{1,18}):([0-9]{1,18}):([0-9]{1,18}):([0-9]{1,9})", re.ASCII)


def find_toc(tail: bytes, blob_size: int) -> TocPlace | None:
    """Where a blob that ends with `tail` says its table is; None if it says nothing.

    Raises:
        FormatError: it says so, but there is no such place.
        LimitExceeded: the table is too large.
        Unsupported: a table of another type.
    """
    size = _MAGICS.get(tail[-8:])
    if size is None or len(tail) < FOOTER_FRAME + size:
        return None
    footer = tail[-FOOTER_FRAME - size :]
    if struct.unpack_from("<II", footer) != (_SKIPPABLE, size):
        return None
    start, length, full_length, kind = struct.unpack_from("<4Q", footer, FOOTER_FRAME)
    return _place(start, length, full_length, kind, blob_size)


def place_from_annotation(position: str, blob_size: int) -> TocPlace:
    """Where the annotation `…zstd-chunked.manifest-position` says the table is.

    Raises:
        FormatError: it is none, or there is no such place.
        LimitExceeded: the table is too large.
        Unsupported: a table of another type.
    """
    match = _POSITION.fullmatch(position)
    if not match:
        raise FormatError(f"not the position of a table of contents: {position[:100]!r}")
    start, length, full_length, kind = map(int, match.groups())
    return _place(start, length, full_length, kind, blob_size)


def _place(start: int, length: int, full_length: int, kind: int, blob_size: int) -> TocPlace:
    if kind != _TYPE:
        raise Unsupported(f"a zstd:chunked table of contents of type {kind}")
    if not full_length:
        raise FormatError("a table of contents of 0 bytes")
    place = TocPlace(Form.ZSTD_CHUNKED, start, start + length, full_length, start - FOOTER_FRAME)
    return checked_place(place, blob_size)


def extract_toc(region: bytes | memoryview, size: int) -> bytes:
    """The JSON of `size` bytes in the bytes of a table's place.

    Raises:
        FormatError: damaged, or of another size.
    """
    decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
    try:
        with decompressor.stream_reader(region) as reader:
            output: bytes = reader.read(size + 1)
    except zstandard.ZstdError as error:
        raise FormatError(f"a table of contents that is damaged: {error}") from error
    if len(output) != size:
        raise FormatError(f"a table of contents of another size than the {size} bytes promised")
    return output
