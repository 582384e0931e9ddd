"""How the C library keeps the memory that large buffers gave back."""

import ctypes
from contextlib import suppress
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
_KEPT: Final = 4 << 20
_ARENAS: Final = 2


def keep_freed_memory() -> None:
    """Has blocks of up to 4 MiB come out of what was freed before, by whatever thread.

    Who unpacks layers takes and frees buffers of a span's size thousands of times. By themselves they go back
    to the kernel each time, and each of their pages is a fault when it is touched anew; and each thread keeps
    its own, though the interpreter's lock lets one at a time ask for memory. To be called before there are
    threads. (mallopt(3); other libraries than glibc have it not, and nothing changes.)
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _KEPT)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
        mallopt(_M_ARENA_MAX, _ARENAS)
