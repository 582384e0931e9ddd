"""RPM's own database, ndb: pages of slots that say where blobs lie, and the blobs, each a package's header.

Format: RPM 4.18, lib/backend/ndb/rpmpkg.c. Integers are little-endian; blobs lie in blocks of 16 bytes. The
file's header takes the place of the first two slots.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Final

from indexer.errors import FormatError, LimitExceeded, Unsupported

_PAGE: Final = 4096
_BLOCK: Final = 16
_HEADER: Final = struct.Struct("<4sI4xI16x")  # magic, version, pages of slots
_SLOT: Final = struct.Struct("<4sIII")  # magic, package, first block, blocks
_HEAD: Final = struct.Struct("<4sI4xI")  # magic, package, length
_TAIL: Final = struct.Struct("<II4s")  # Adler-32 of all before it, length, magic
_MAX_SLOT_PAGES: Final = 4096


def read_blobs(data: bytes) -> Iterator[bytes]:
    """The blobs of all packages, in the order of the file.

    Raises:
        FormatError: it is damaged, or no such database.
        LimitExceeded: it has room for more packages than any system has.
        Unsupported: it is of another version.
    """
    end = _slots_end(data)
    for first, blocks, package in sorted(_slots(data, end)):
        start = first * _BLOCK
        if start < end:
            raise FormatError("a package of an ndb lies where something else does", start)
        end = start + blocks * _BLOCK
        if end > len(data):
            raise FormatError(f"an ndb is cut short: it should have {end} bytes")
        yield _blob(memoryview(data)[start:end], package, start)


def _slots_end(data: bytes) -> int:
    if len(data) < _HEADER.size:
        raise FormatError("an ndb is cut short")
    magic, version, pages = _HEADER.unpack_from(data)
    if magic != b"RpmP":
        raise FormatError("no ndb")
    if version:
        raise Unsupported(f"an ndb has version {version}")
    if pages > _MAX_SLOT_PAGES:
        raise LimitExceeded(f"an ndb has {pages} pages of slots")
    if not pages or pages * _PAGE > len(data):
        raise FormatError("an ndb is cut short")
    return int(pages) * _PAGE


def _slots(data: bytes, end: int) -> Iterator[tuple[int, int, int]]:
    """(first block, blocks, package) of the slots in use."""
    for magic, package, first, blocks in _SLOT.iter_unpack(memoryview(data)[_HEADER.size : end]):
        if magic != b"Slot":
            raise FormatError("an ndb has a damaged slot")
        if first or blocks or package:
            yield first, blocks, package


def _blob(place: memoryview, package: int, offset: int) -> bytes:
    """The blob in a place, which has the size that fits."""
    if len(place) < _HEAD.size + _TAIL.size:
        raise FormatError("an ndb has too little room for a package", offset)
    magic, itself, length = _HEAD.unpack_from(place)
    tail = len(place) - _TAIL.size
    checksum, length_again, end_magic = _TAIL.unpack_from(place, tail)
    if (magic, end_magic, itself, length_again) != (b"BlbS", b"BlbE", package, length):
        raise FormatError(f"package {package} of an ndb is not where its slot says", offset)
    if not 0 <= tail - _HEAD.size - length < _BLOCK or zlib.adler32(place[:tail]) != checksum:
        raise FormatError(f"package {package} of an ndb is damaged", offset)
    return bytes(place[_HEAD.size : _HEAD.size + length])
