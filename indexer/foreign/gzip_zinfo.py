"""Checkpoints of a gzip stream as soci-snapshotter writes them (ztoc/compression/gzip_zinfo.c).

    header        number of checkpoints (int32), span size (int64)
    checkpoints   compressed offset (int64), uncompressed offset (int64), bits (uint8), window of 32 KiB

Numbers are little-endian and packed. The older form leaves out the first checkpoint, which it takes to stand
right after a gzip header of 10 bytes; only the length tells the two apart.
"""

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from msgspec import Struct

from indexer.errors import FormatError, LimitExceeded

PLAIN_HEADER: Final = 10
"""Bytes of a gzip header without optional fields."""

MAX_CHECKPOINTS: Final = 1 << 20

_HEADER: Final = struct.Struct("<iq")
_POINT: Final = struct.Struct("<qqB")
_WINDOW: Final = 32768
_SIZE: Final = _POINT.size + _WINDOW


class Checkpoint(NamedTuple):
    """Where inflating can begin.

    Attributes:
        compressed: offset of the first whole byte.
        uncompressed: offset of the first byte that comes out.
        bits: how many top bits of the byte before `compressed` belong to it as well.
        window: the output before it that can be referred to.
    """

    compressed: int
    uncompressed: int
    bits: int
    window: bytes


class Zinfo(Struct, frozen=True):
    """The checkpoints of a stream.

    Attributes:
        points: at least one, the first at uncompressed offset 0; their order is not looked at.
        assumes_plain_header: whether the first one's place was taken for granted.
    """

    points: Sequence[Checkpoint]
    assumes_plain_header: bool


def parse_zinfo(data: bytes) -> Zinfo:
    """The checkpoints in the bytes of a gzip zinfo.

    Raises:
        FormatError: they break the rules.
        LimitExceeded: too many.
    """
    if len(data) < _HEADER.size:
        raise FormatError("gzip checkpoints that are cut short")
    count, _ = _HEADER.unpack_from(data)
    if not 0 < count <= MAX_CHECKPOINTS:
        raise LimitExceeded(f"{count} gzip checkpoints; 1 to {MAX_CHECKPOINTS} are read")
    stored, rest = divmod(len(data) - _HEADER.size, _SIZE)
    if rest or count - stored not in (0, 1):
        raise FormatError(f"{len(data)} bytes for {count} gzip checkpoints")
    points = [_point(data, _HEADER.size + number * _SIZE) for number in range(stored)]
    if stored < count:
        points.insert(0, Checkpoint(PLAIN_HEADER, 0, 0, b""))
    _check(points)
    return Zinfo(points, assumes_plain_header=stored < count)


def _point(data: bytes, at: int) -> Checkpoint:
    compressed, uncompressed, bits = _POINT.unpack_from(data, at)
    # In front of the stream's start there is nothing that could be referred to.
    size = min(max(uncompressed, 0), _WINDOW)
    end = at + _SIZE
    return Checkpoint(compressed, uncompressed, bits, data[end - size : end])


def _check(points: Sequence[Checkpoint]) -> None:
    first = points[0]
    if first.uncompressed or first.bits or first.compressed < PLAIN_HEADER:
        raise FormatError("gzip checkpoints that do not begin at the stream's start")
    if any(point.bits > 7 for point in points):
        raise FormatError("a gzip checkpoint of more than 7 bits")
