"""One block of an EROFS directory: dirents in the order of their names, then the names."""

import struct
from typing import Final

from indexer.erofs import format as erofs
from indexer.errors import FormatError

DIRENT_SIZE: Final = erofs.DIRENT.size
_NAME_OFFSET: Final = struct.Struct("<H")
_NAME_RANGE: Final = struct.Struct("<H10xH")  # the offsets of two neighbours' names
_FIRST: Final = 8  # where the first dirent has its nameoff


def first_name(block: bytes) -> bytes:
    """The name of a block's first entry.

    Raises:
        FormatError: this is no block of a directory.
    """
    start = _names_start(block)
    if start == DIRENT_SIZE:
        return block[start:].rstrip(b"\0")
    return block[start : _NAME_RANGE.unpack_from(block, _FIRST)[1]]


def find(block: bytes, name: bytes) -> int | None:
    """The nid of `name`, or None where the block does not have it.

    Raises:
        FormatError: this is no block of a directory.
    """
    last = _names_start(block) // DIRENT_SIZE - 1
    low, high = 0, last
    while low <= high:
        middle = (low + high) >> 1
        if middle < last:
            start, end = _NAME_RANGE.unpack_from(block, middle * DIRENT_SIZE + _FIRST)
            candidate = block[start:end]
        else:
            (start,) = _NAME_OFFSET.unpack_from(block, middle * DIRENT_SIZE + _FIRST)
            candidate = block[start:].rstrip(b"\0")
        if candidate == name:
            nid: int = erofs.DIRENT.unpack_from(block, middle * DIRENT_SIZE)[0]
            return nid
        if candidate < name:
            low = middle + 1
        else:
            high = middle - 1
    return None


def parse(block: bytes) -> list[tuple[bytes, int]]:
    """(name, nid) of all entries.

    Raises:
        FormatError: this is no block of a directory, or it holds a name that no file can have.
    """
    names_start = _names_start(block)
    names = block[names_start:].rstrip(b"\0")
    if b"/" in names or b"\0" in names:
        raise FormatError("a directory has a name that no file can have")
    dirents = list(erofs.DIRENT.iter_unpack(block[:names_start]))
    ends = [offset for _, offset, _ in dirents[1:]]
    ends.append(names_start + len(names))
    entries = []
    for (nid, start, _), end in zip(dirents, ends, strict=True):
        if not names_start <= start < end <= names_start + len(names):
            raise FormatError("a directory's names overlap")
        entries.append((block[start:end], nid))
    return entries


def _names_start(block: bytes) -> int:
    """The first dirent's nameoff: where dirents end and names begin."""
    if len(block) > DIRENT_SIZE:
        start: int = _NAME_OFFSET.unpack_from(block, _FIRST)[0]
        if DIRENT_SIZE <= start < len(block) and start % DIRENT_SIZE == 0:
            return start
    raise FormatError("a directory's block is damaged")
