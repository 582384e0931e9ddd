"""Where the contents of a sparse member stand: the maps of old GNU tars and of PAX formats 0.0, 0.1 and 1.0.

Formats: GNU tar manual, "Storing Sparse Files". A map lists pieces in order; the body holds the bytes of the
pieces back to back, and all between the pieces is zeros.
"""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from msgspec import Struct

from indexer.errors import FormatError, LimitExceeded, Unsupported
from indexer.tar.header import read_number
from indexer.tar.pax import Records, parse_decimal, record_number
from indexer.toc import BLOCK_SIZE, Extent

MAX_MAP: Final = 1 << 20
"""Bytes of the longest map at the start of a body."""

_CELL: Final = 24
_FIRST_CELLS: Final = (386, 4)
_MORE_CELLS: Final = (0, 21)
_VERSIONS: Final = {
    (b"0", b"0"): "0",
    (b"0", b"1"): "0",
    (b"1", b"0"): "1",
}


class Piece(NamedTuple):
    """Bytes [start, start + length) of a sparse file, which are stored; the others are zeros."""

    start: int
    length: int


class SparseBody(Struct, frozen=True):
    """The contents of a sparse member, as far as they do not depend on where the tail begins.

    Attributes:
        size: bytes of the file, holes and all.
        tar_start: uncompressed offset of the first piece's bytes.
        pieces: what is stored, in order.
    """

    size: int
    tar_start: int
    pieces: Sequence[Piece]

    def extents(self, start: int) -> Iterable[Extent]:
        """The pieces that hold bytes, for a file that begins at `start` of the tail."""
        tar_start = self.tar_start
        for piece in self.pieces:
            if piece.length:
                yield Extent(start + piece.start, tar_start, piece.length)
            tar_start += piece.length


def check_pieces(pieces: Sequence[Piece], size: int, stored: int, offset: int) -> None:
    """A map is in order, without overlap, inside the file, and tells of all `stored` bytes.

    Raises:
        FormatError: this one is otherwise.
    """
    ends = [0, *(piece.start + piece.length for piece in pieces)]
    if any(piece.start < end or piece.length < 0 for piece, end in zip(pieces, ends, strict=False)):
        raise FormatError("tar: a sparse map out of order", offset)
    if ends[-1] > size:
        raise FormatError(f"tar: a sparse map of {ends[-1]} bytes for a file of {size}", offset)
    total = sum(piece.length for piece in pieces)
    if total != stored:
        raise FormatError(f"tar: a sparse map of {total} stored bytes, where {stored} are", offset)


def gnu_pieces(block: bytes, offset: int, *, first: bool) -> tuple[list[Piece], bool]:
    """The pieces an old GNU header, or one of the blocks that go on after it, lists; and whether more follow.

    Raises:
        FormatError: a number is none.
    """
    start, count = _FIRST_CELLS if first else _MORE_CELLS
    end = start + count * _CELL
    pieces = []
    for cell in range(start, end, _CELL):
        if not block[cell]:
            break
        pieces.append(
            Piece(
                read_number(block[cell : cell + 12], "sparse offset", offset),
                read_number(block[cell + 12 : cell + _CELL], "sparse length", offset),
            )
        )
    return pieces, block[end] != 0


def gnu_real_size(block: bytes, offset: int) -> int:
    """The size, holes and all, that an old GNU sparse header states.

    Raises:
        FormatError: it is no number.
    """
    return read_number(block[483:495], "real size", offset)


def pax_version(records: Records, offset: int) -> str | None:
    """Where the map stands: "0" in the records, "1" in the body; None for a plain file.

    Raises:
        Unsupported: a version of GNU sparse formats that does not exist yet.
    """
    version = records.get(b"GNU.sparse.major", b""), records.get(b"GNU.sparse.minor", b"")
    if any(version):
        if version not in _VERSIONS:
            raise Unsupported(f"GNU sparse format {version!r} of the tar header at byte {offset}")
        return _VERSIONS[version]
    return "0" if records.get(b"GNU.sparse.map") else None


def pax_real_size(records: Records, otherwise: int, offset: int) -> int:
    """The size, holes and all, of a PAX sparse file.

    Raises:
        FormatError: it is no number.
    """
    real = record_number(records, b"GNU.sparse.realsize", otherwise, offset)
    return record_number(records, b"GNU.sparse.size", real, offset)


def map_in_records(records: Records, offset: int) -> list[Piece]:
    """The pieces that the records of formats 0.0 and 0.1 list.

    Raises:
        FormatError: they are not as many numbers as the records say.
    """
    text = records.get(b"GNU.sparse.map", b"")
    numbers = [parse_decimal(number, "sparse map", offset) for number in text.split(b",")] if text else []
    count = record_number(records, b"GNU.sparse.numblocks", -1, offset)
    if len(numbers) != 2 * count:
        raise FormatError(f"tar: a sparse map of {len(numbers)} numbers for {count} pieces", offset)
    return _paired(numbers)


class MapInBody:
    """The map of format 1.0: how many pieces, then their starts and lengths, a number a line, then padding.

    Feed it the blocks of the body until it says that it has all.
    """

    def __init__(self, stored: int, offset: int) -> None:
        self._stored = stored
        self._offset = offset
        self._text = bytearray()
        self._lines = 0
        self._wanted = 0

    def feed(self, block: bytes) -> bool:
        """Take the next block; whether the map is whole.

        Raises:
            FormatError: the map passes the body's end, or does not say how long it is.
            LimitExceeded: it is longer than MAX_MAP.
        """
        self._text += block
        if len(self._text) > self._stored:
            raise FormatError("tar: a sparse map passes the end of its member", self._offset)
        self._lines += block.count(b"\n")
        if not self._wanted:
            count, newline, _ = bytes(self._text[:BLOCK_SIZE]).partition(b"\n")
            if not newline:
                raise FormatError("tar: a sparse map without a count", self._offset)
            self._wanted = 1 + 2 * parse_decimal(count, "number of sparse pieces", self._offset)
        if max(2 * self._wanted, len(self._text)) > MAX_MAP:
            raise LimitExceeded(f"tar: a sparse map above {MAX_MAP} bytes", self._offset)
        return self._lines >= self._wanted

    @property
    def size(self) -> int:
        """Bytes the map takes, padding and all."""
        return len(self._text)

    def pieces(self) -> list[Piece]:
        """What the whole map lists.

        Raises:
            FormatError: a number is none.
        """
        lines = bytes(self._text).split(b"\n", self._wanted)[1 : self._wanted]
        return _paired([parse_decimal(line, "sparse map", self._offset) for line in lines])


def _paired(numbers: Sequence[int]) -> list[Piece]:
    return [Piece(numbers[i], numbers[i + 1]) for i in range(0, len(numbers), 2)]
