"""What the kernel has in memory of a file."""

import ctypes
import mmap
import os
from pathlib import Path
from typing import Final

PAGE: Final = 4096
_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p


def pages_in_memory(file_number: int, offset: int, pages: int) -> int:
    """How many of these pages of a file are in the page cache. Reading them would bring them."""
    length, place = ctypes.c_size_t(pages * PAGE), ctypes.c_long(offset)
    address = ctypes.c_void_p(_libc.mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, file_number, place))
    found = (ctypes.c_ubyte * pages)()
    assert _libc.mincore(address, length, found) == 0
    assert _libc.munmap(address, length) == 0
    return sum(page & 1 for page in found)


def in_memory(file_number: int, offset: int) -> bool:
    """Whether a page of a file is in the page cache."""
    return bool(pages_in_memory(file_number, offset, 1))


def forget(path: Path | int) -> None:
    """Drop a file from the page cache."""
    number = path if isinstance(path, int) else os.open(path, os.O_RDONLY)
    os.fdatasync(number)
    os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
    if number is not path:
        os.close(number)
