"""Hash databases of Berkeley DB: a table of buckets, each a chain of pages that hold keys and values.

Format: Berkeley DB 5.3, dbinc/db_page.h (pages) and dbinc/hash.h (where buckets lie); what RPM uses of it,
its lib/backend/bdb_ro.c. Integers are in the order of the machine that wrote them, as the magic number tells.

The file is a stranger's. A page belongs to one bucket or one value, so a file that refers to one twice is
damaged, and the work is bounded by its size.
"""

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from indexer.errors import FormatError, Unsupported

_MAGIC: Final = 0x061561
_MAGIC_AT: Final = 12
_META_SIZE: Final = 512
_META: Final = "16xII3B5xI36xI20x32I"
"""Version, page size, cipher, type, flags, last page, last bucket, spares (`first_page` tells of these)."""

_VERSIONS: Final = range(8, 11)  # those that RPM reads
_PAGE_SIZES: Final = frozenset(1 << bits for bits in range(9, 17))
_CHECKSUMS: Final = 0x01

_PAGE: Final = "8xI4xIHHxB"  # number, next page, entries, bytes of an overflow page in use, type
_PAGE_HEADER: Final = 26
_OFF_PAGE: Final = "4xII"  # number of the first page, length
_HASH_META: Final = 8
_HASH: Final = frozenset({2, 13})  # unsorted as before 4.6, and sorted
_OVERFLOW: Final = frozenset({7})
_ITEM_HERE, _ITEM_OFF_PAGE = 1, 3


class _Page(NamedTuple):
    """The header of a page, and where it starts in the file."""

    start: int
    next: int
    entries: int
    used: int


def read_hash(data: bytes, max_value: int) -> Iterator[tuple[bytes, bytes]]:
    """The keys and values, bucket by bucket.

    Args:
        data: the file.
        max_value: bytes of the largest value that may be.

    Raises:
        FormatError: it is damaged, or no such database.
        Unsupported: it is encrypted or has checksums, which RPM's never have, or is of another version.
    """
    table = _Table(data, max_value)
    for bucket in range(table.buckets):
        number = table.first_page(bucket)
        while number:
            page = table.take(number, _HASH)
            items = table.items(page)
            yield from zip(items, items, strict=True)
            number = page.next


class _Table:
    """The pages of a database; each can be taken once."""

    def __init__(self, data: bytes, max_value: int) -> None:
        self._data = data
        self._max_value = max_value
        self._order = _byte_order(data)
        version, size, cipher, kind, flags, last, last_bucket, *spares = self._unpack(_META, 0)
        if kind != _HASH_META or size not in _PAGE_SIZES:
            raise FormatError("a Berkeley DB without a page that describes it")
        if version not in _VERSIONS:
            raise Unsupported(f"a hash of Berkeley DB has version {version}")
        if cipher or flags & _CHECKSUMS:
            raise Unsupported("a Berkeley DB is encrypted or has checksums")
        pages = min(last + 1, len(data) // size)
        if last_bucket >= pages:
            raise FormatError(f"a Berkeley DB is cut short: {last_bucket + 1} buckets in {pages} pages")
        self._size = size
        self._spares = spares
        self._taken = bytearray(pages)
        self.buckets = last_bucket + 1

    def first_page(self, bucket: int) -> int:
        """The number of a bucket's first page: its own, and what the last doubling left in front."""
        return bucket + int(self._spares[bucket.bit_length()])

    def take(self, number: int, kinds: frozenset[int]) -> _Page:
        """A page that must be of one of these kinds."""
        if not 0 < number < len(self._taken):
            raise FormatError(f"a Berkeley DB has no page {number}")
        if self._taken[number]:
            raise FormatError(f"page {number} of a Berkeley DB is used twice")
        self._taken[number] = True
        start = number * self._size
        itself, following, entries, used, kind = self._unpack(_PAGE, start)
        # Where a table grows, Berkeley DB leaves holes in the file: buckets in which nothing ever was.
        hole = kinds is _HASH and not any(self._data[start : start + _PAGE_HEADER])
        if not hole and (itself != number or kind not in kinds):
            raise FormatError(f"page {number} of a Berkeley DB is of another kind or place", start)
        return _Page(start, following, entries, used)

    def items(self, page: _Page) -> Iterator[bytes]:
        """What a page holds: keys and values by turns. They lie from its end to its front."""
        free = _PAGE_HEADER + 2 * page.entries
        if page.entries % 2 or free > self._size:
            raise FormatError("a page of a Berkeley DB has keys without values", page.start)
        end = self._size
        for offset in self._unpack(f"{page.entries}H", page.start + _PAGE_HEADER):
            if not free <= offset < end:
                raise FormatError("an item of a Berkeley DB lies outside its place", page.start)
            yield self._item(page.start + offset, page.start + end)
            end = offset

    def _item(self, start: int, end: int) -> bytes:
        kind = self._data[start]
        if kind == _ITEM_HERE:
            return self._data[start + 1 : end]
        if kind != _ITEM_OFF_PAGE or end - start != struct.calcsize(f"={_OFF_PAGE}"):
            raise FormatError(f"an item of a Berkeley DB has type {kind}", start)
        return self._value(*self._unpack(_OFF_PAGE, start))

    def _value(self, number: int, length: int) -> bytes:
        """What is spread over a chain of pages."""
        if length > self._max_value:
            raise FormatError(f"a value of a Berkeley DB has {length} bytes")
        parts = []
        while length > 0:
            page = self.take(number, _OVERFLOW)
            if not 0 < page.used <= min(length, self._size - _PAGE_HEADER):
                raise FormatError("a value of a Berkeley DB has another length than it should", page.start)
            parts.append(self._data[page.start + _PAGE_HEADER : page.start + _PAGE_HEADER + page.used])
            length -= page.used
            number = page.next
        return b"".join(parts)

    def _unpack(self, form: str, start: int) -> tuple[int, ...]:
        return struct.unpack_from(self._order + form, self._data, start)


def _byte_order(data: bytes) -> str:
    if len(data) < _META_SIZE:
        raise FormatError("a Berkeley DB is cut short")
    for order in "<>":
        if struct.unpack_from(f"{order}I", data, _MAGIC_AT) == (_MAGIC,):
            return order
    raise FormatError("no hash of a Berkeley DB")
