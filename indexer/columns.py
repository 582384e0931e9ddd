"""Columns of integers as bytes: every number's lowest bytes first, then the next ones.

Tables of offsets and sizes compress several times better when bytes of the same weight stand together.
"""

from array import array
from collections.abc import Iterable

from indexer.errors import FormatError

_WIDTH = 8


def pack(values: Iterable[int], typecode: str = "Q") -> bytes:
    """Little-endian 64-bit integers (`Q` unsigned, `q` signed) as eight planes of bytes.

    Raises:
        FormatError: a value does not fit.
    """
    try:
        raw = array(typecode, values).tobytes()
    except (OverflowError, TypeError) as error:
        raise FormatError(f"a number does not fit into 64 bits: {error}") from error
    return b"".join(raw[plane::_WIDTH] for plane in range(_WIDTH))


class ColumnReader:
    """Takes columns and bytes off the front of a table, checking that they are there."""

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._what = what
        self._position = 0

    def take(self, size: int) -> bytes:
        """The next `size` bytes.

        Raises:
            FormatError: the table is shorter.
        """
        end = self._position + size
        if size < 0 or end > len(self._data):
            raise FormatError(f"{self._what} is cut short", self._position)
        piece = self._data[self._position : end]
        self._position = end
        return piece

    def column(self, count: int, typecode: str = "Q") -> "array[int]":
        """The next `count` integers.

        Raises:
            FormatError: the table is shorter.
        """
        planes = self.take(count * _WIDTH)
        raw = bytearray(count * _WIDTH)
        for plane in range(_WIDTH):
            raw[plane::_WIDTH] = planes[plane * count : (plane + 1) * count]
        values = array(typecode)
        values.frombytes(bytes(raw))
        return values

    def skip(self, count: int) -> None:
        """Pass over the next `count` integers; raises what `take` does."""
        self.take(count * _WIDTH)

    def close(self) -> None:
        """Nothing may be left.

        Raises:
            FormatError: something is.
        """
        if self._position != len(self._data):
            raise FormatError(f"{self._what} has bytes left over", self._position)
