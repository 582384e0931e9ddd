"""The table of contents of an eStargz layer: where it lies, and how.

The last gzip member is empty; its header's extra field says where the member with the table begins
(stargz-snapshotter, estargz.md, "Footer"). That member holds a tar whose first entry is the JSON.

    51 bytes    subfield "SG" of 22 bytes: 16 hexadecimal digits and "STARGZ"
    47 bytes    the same 22 bytes as the whole extra field: stargz, before there were digests
    46 bytes    subfield "SG" of "STARGZEXTERNALTOC": the table is in another image; not read here
"""

import re
import struct
import zlib
from typing import Final

from indexer.errors import FormatError, LimitExceeded
from indexer.foreign.json_entries import MAX_TOC
from indexer.foreign.place import Form, TocPlace, checked_place
from indexer.tar.header import read_header
from indexer.toc import BLOCK_SIZE

FOOTER_SIZE: Final = 51
LEGACY_FOOTER_SIZE: Final = 47
TOC_NAME: Final = b"stargz.index.json"

_GZIP: Final = b"\x1f\x8b\x08\x04"  # deflate, with an extra field
_FIXED_HEADER: Final = 10
_OFFSET: Final = re.compile(rb"([0-9a-f]{16})STARGZ")


def find_toc(tail: bytes, blob_size: int) -> TocPlace | None:
    """Where a blob that ends with `tail` says its table is; None if it says nothing.

    Raises:
        FormatError: it says so, but there is no such place.
        LimitExceeded: the table is too large.
    """
    for size, extra_start in ((FOOTER_SIZE, 4), (LEGACY_FOOTER_SIZE, 0)):
        extra = _extra(tail[-size:]) if len(tail) >= size else b""
        if size == FOOTER_SIZE and extra[:4] != b"SG\x16\0":
            continue
        match = _OFFSET.fullmatch(extra[extra_start:])
        if match:
            start = int(match[1], 16)
            return checked_place(TocPlace(Form.ESTARGZ, start, blob_size - size, 0, start), blob_size)
    return None


def _extra(member: bytes) -> bytes:
    """The extra field of a gzip member (RFC 1952 section 2.3); b"" if it has none."""
    if not member.startswith(_GZIP):
        return b""
    (size,) = struct.unpack_from("<H", member, _FIXED_HEADER)
    return member[_FIXED_HEADER + 2 : _FIXED_HEADER + 2 + size]


def extract_toc(region: bytes | memoryview) -> bytes:
    """The JSON in the bytes of a table's place.

    Raises:
        FormatError: these are not a gzip member with a tar whose first entry is the table.
        LimitExceeded: it is too large.
    """
    inflater = zlib.decompressobj(31)
    header = _inflate(inflater, region, BLOCK_SIZE)
    entry = read_header(header, 0)
    if entry.name != TOC_NAME or entry.typeflag not in (b"0", b"\0"):
        raise FormatError(f"not a table of contents, but {entry.name[:100]!r}")
    if not 0 < entry.size <= MAX_TOC:
        raise LimitExceeded(f"a table of contents of {entry.size} bytes; at most {MAX_TOC} are read")
    return _inflate(inflater, inflater.unconsumed_tail, entry.size)


def _inflate(inflater: "zlib._Decompress", data: bytes | memoryview, size: int) -> bytes:
    """Exactly the next `size` bytes."""
    try:
        output = inflater.decompress(data, size)
    except zlib.error as error:
        raise FormatError(f"a table of contents that is damaged: {error}") from error
    if len(output) != size:
        raise FormatError(f"a table of contents cut short: {len(output)} of {size} bytes")
    return output
