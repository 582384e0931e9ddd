"""A reader of FlatBuffers that strangers wrote: every offset is checked, every string is counted.

Format: FlatBuffers internals, "Tables" and "Vectors". A table begins with the distance back to its vtable,
which tells for each slot how far behind the table's start its field lies; 0 is an absent one. Offsets may
point anywhere, also many to one place, so strings and lists together may be no longer than some times the
buffer.
"""

import struct
from collections.abc import Iterator
from typing import Final

from indexer.errors import FormatError, LimitExceeded

MAX_SLOTS: Final = 16
"""Fields of a table that are looked at; schemas read here have fewer."""

_MAX_REUSE: Final = 4
_OFFSET: Final = struct.Struct("<I")
_BACK: Final = struct.Struct("<i")
_VTABLE: Final = struct.Struct("<HH")
_NUMBERS: Final = {code: struct.Struct("<" + code) for code in "biIq"}


class FlatBuffer:
    """A buffer and what may still be taken out of it.

    Args:
        data: the buffer.
    """

    __slots__ = ("_data", "_left", "_vtables")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._left = _MAX_REUSE * len(data)
        self._vtables: dict[int, tuple[int, ...]] = {}

    def root(self) -> "Table":
        """The root table.

        Raises:
            FormatError: there is none.
        """
        return self.table_at(self.unpack(_OFFSET, 0))

    def table_at(self, at: int) -> "Table":
        """The table that begins at byte `at`.

        Raises:
            FormatError: none can.
        """
        return Table(self, at, self._slots(at - self.unpack(_BACK, at)))

    def _slots(self, at: int) -> tuple[int, ...]:
        found = self._vtables.get(at)
        if found is None:
            size, _ = self._pair(at)
            count = min(max(size - _VTABLE.size, 0) // 2, MAX_SLOTS)
            found = self._vtables[at] = self._unpack(struct.Struct(f"<{count}H"), at + _VTABLE.size)
        return found

    def _pair(self, at: int) -> tuple[int, ...]:
        return self._unpack(_VTABLE, at)

    def unpack(self, form: struct.Struct, at: int) -> int:
        """The one number of `form` at byte `at`.

        Raises:
            FormatError: that is outside the buffer.
        """
        number: int = self._unpack(form, at)[0]
        return number

    def _unpack(self, form: struct.Struct, at: int) -> tuple[int, ...]:
        if not 0 <= at <= len(self._data) - form.size:
            raise FormatError("a FlatBuffer with an offset that leaves it", at)
        return form.unpack_from(self._data, at)

    def follow(self, at: int) -> int:
        """Where the offset at byte `at` points.

        Raises:
            FormatError: the offset is outside the buffer.
        """
        return at + self.unpack(_OFFSET, at)

    def take(self, at: int) -> bytes:
        """The string, or vector of bytes, at byte `at`.

        Raises:
            FormatError: it leaves the buffer.
            LimitExceeded: the same bytes were taken too often.
        """
        size = self.unpack(_OFFSET, at)
        start = at + _OFFSET.size
        if size > len(self._data) - start:
            raise FormatError("a FlatBuffer with a string that leaves it", at)
        self._spend(_OFFSET.size + size, at)
        return self._data[start : start + size]

    def vector(self, at: int, most: int) -> range:
        """Where the 4-byte elements of the vector at byte `at` lie.

        Raises:
            FormatError: they leave the buffer.
            LimitExceeded: there are more than `most`, or they were asked for too often.
        """
        count = self.unpack(_OFFSET, at)
        if count > most:
            raise LimitExceeded(f"a FlatBuffer with a list of {count}; at most {most} are read", at)
        start = at + _OFFSET.size
        if 4 * count > len(self._data) - start:
            raise FormatError("a FlatBuffer with a list that leaves it", at)
        self._spend(_OFFSET.size + 4 * count, at)
        return range(start, start + 4 * count, 4)

    def _spend(self, size: int, at: int) -> None:
        self._left -= size
        if self._left < 0:
            raise LimitExceeded("a FlatBuffer in which the same bytes are used again and again", at)


class Table:
    """One table. Fields are asked for by slot; absent ones have the default."""

    __slots__ = ("_at", "_buffer", "_offsets")

    def __init__(self, buffer: FlatBuffer, at: int, offsets: tuple[int, ...]) -> None:
        self._buffer = buffer
        self._at = at
        self._offsets = offsets

    def _field(self, slot: int) -> int | None:
        offset = self._offsets[slot] if slot < len(self._offsets) else 0
        return self._at + offset if offset else None

    def number(self, slot: int, code: str, default: int = 0) -> int:
        """The integer of struct code `code`: b, i, I or q.

        Raises:
            FormatError: it leaves the buffer.
        """
        at = self._field(slot)
        return default if at is None else self._buffer.unpack(_NUMBERS[code], at)

    def string(self, slot: int) -> bytes:
        """The string or vector of bytes; b"" where there is none. Raises what `FlatBuffer.take` does."""
        at = self._field(slot)
        return b"" if at is None else self._buffer.take(self._buffer.follow(at))

    def table(self, slot: int) -> "Table":
        """The table.

        Raises:
            FormatError: there is none.
        """
        at = self._field(slot)
        if at is None:
            raise FormatError(f"a FlatBuffer without the table of slot {slot}", self._at)
        return self._buffer.table_at(self._buffer.follow(at))

    def tables(self, slot: int, most: int) -> "Iterator[Table]":
        """The tables of a list, at most `most`. Raises what `table` and `FlatBuffer.vector` do."""
        for at in self._elements(slot, most):
            yield self._buffer.table_at(self._buffer.follow(at))

    def strings(self, slot: int, most: int) -> Iterator[bytes]:
        """The strings of a list, at most `most`. Raises what `string` and `FlatBuffer.vector` do."""
        for at in self._elements(slot, most):
            yield self._buffer.take(self._buffer.follow(at))

    def _elements(self, slot: int, most: int) -> range:
        at = self._field(slot)
        return range(0) if at is None else self._buffer.vector(self._buffer.follow(at), most)
