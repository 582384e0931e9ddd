"""How the C library keeps the memory that large buffers gave back."""

import ctypes
from contextlib import suppress
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_KEPT: Final = 4 << 20


def keep_freed_memory() -> None:
    """Has blocks of up to 4 MiB come out of what was freed before, of which so much is kept for each thread.

    Who unpacks layers takes and frees buffers of a span's size thousands of times. By themselves they go back
    to the kernel each time, and each of their pages is a fault when it is touched anew. (mallopt(3); other
    libraries than glibc have it not, and nothing changes.)
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _KEPT)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
