"""When the regions of an entry's device were last used: a file `used` beside its data, a number per region.

Readers set a byte in memory (16 ns a read); whoever holds the entry writes them out now and then. Nothing
here is exact, and nothing is wrong without it: eviction begins elsewhere then.
"""

import os
from array import array
from contextlib import suppress
from typing import Final

from lazyfs.cache.files import FILE_MODE, write_all

REGION_BITS: Final = 20
REGION: Final = 1 << REGION_BITS

_NAME: Final = "used"
_ITEM: Final = 8


def region_count(size: int) -> int:
    """How many regions a device of `size` bytes has, the last of them perhaps empty."""
    return (size >> REGION_BITS) + 1


def note_use(directory: int, touched: bytearray, now: float) -> None:
    """Notes that regions were used now; what cannot be written is not noted.

    Args:
        directory: descriptor of the entry's directory.
        touched: a byte per region; not 0 if it was used.
        now: seconds since 1970.
    """
    when = int(now * 1000).to_bytes(_ITEM, "little")
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    with suppress(OSError):
        descriptor = os.open(_NAME, flags, FILE_MODE, dir_fd=directory)
        try:
            first = touched.find(1)
            while first >= 0:
                end = touched.find(0, first)
                end = len(touched) if end < 0 else end
                write_all(descriptor, when * (end - first), first * _ITEM)
                first = touched.find(1, end)
        finally:
            os.close(descriptor)


def last_uses(directory: int, regions: int, unknown: float) -> list[float]:
    """When each region was last used, seconds since 1970; `unknown` where that was not noted."""
    data = b""
    with suppress(OSError):
        descriptor = os.open(_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
        try:
            data = os.pread(descriptor, regions * _ITEM, 0)
        finally:
            os.close(descriptor)
    whole = data[: len(data) // _ITEM * _ITEM].ljust(regions * _ITEM, b"\0")
    times = array("Q", whole)
    return [time / 1000 if time else unknown for time in times]
