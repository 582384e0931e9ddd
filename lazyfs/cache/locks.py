"""Locks between processes: bytes of one open file, and named files. The kernel frees them on death.

Open file description locks (fcntl_locking(2), F_OFD_SETLK) belong to the descriptor, not to the process: they
exclude other descriptors of the same process too, and closing another one does not drop them. They cannot
be waited for in trio, so waiting is polling; what they guard takes milliseconds to minutes.
"""

import errno
import fcntl
import math
import os
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Final

import trio

from lazyfs.cache.files import FILE_MODE, cache_errors, is_at, plain_name
from lazyfs.flock import LockWait, try_flock

_FIRST_PAUSE_S: Final = 0.001
_LONGEST_PAUSE_S: Final = 0.020


def try_lock_bytes(descriptor: int, offset: int, count: int = 1) -> bool:
    """Takes the exclusive lock on bytes, all or none, without waiting; the file need not have them.

    Raises:
        OSError: the file system has no such locks.
    """
    try:
        _set_lock(descriptor, fcntl.F_OFD_SETLK, fcntl.F_WRLCK, offset, count)
    except OSError as error:
        if error.errno in {errno.EAGAIN, errno.EACCES}:
            return False
        raise
    return True


def unlock_bytes(descriptor: int, offset: int, count: int = 1) -> None:
    """Gives the lock on bytes back."""
    _set_lock(descriptor, fcntl.F_OFD_SETLK, fcntl.F_UNLCK, offset, count)


@contextmanager
def byte_locked(descriptor: int, offset: int, patience_s: float) -> Iterator[None]:
    """Holds the exclusive lock on one byte; blocks until it is free.

    Args:
        descriptor: of the file, open for writing.
        offset: of the byte.
        patience_s: for how many seconds to wait. A holder may be stopped (SIGSTOP).

    Raises:
        TimeoutError: somebody else held it for that long.
        OSError: the file system has no such locks.
    """
    _wait_for_byte(descriptor, offset, time.monotonic() + patience_s)
    try:
        yield
    finally:
        unlock_bytes(descriptor, offset)


def _wait_for_byte(descriptor: int, offset: int, deadline: float) -> None:
    pause = _FIRST_PAUSE_S
    while not try_lock_bytes(descriptor, offset):
        if time.monotonic() >= deadline:
            raise TimeoutError("another process holds the lock for too long")
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)


def _set_lock(descriptor: int, command: int, kind: int, offset: int, count: int) -> None:
    # struct flock of 64-bit Linux: l_type, l_whence, l_start, l_len, l_pid; the last must be 0 for OFD locks.
    fcntl.fcntl(descriptor, command, struct.pack("hhqqi0q", kind, os.SEEK_SET, offset, count, 0))


async def wait_acquired(acquire_nowait: Callable[[], bool]) -> None:
    """Tries until it succeeds, with pauses from 1 to 20 ms; no checkpoint where the first try succeeds."""
    pause = _FIRST_PAUSE_S
    while not acquire_nowait():
        await trio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)


@asynccontextmanager
async def named_lock(directory: Path, name: str) -> AsyncIterator[None]:
    """Holds the lock `name`, alone among all tasks and processes that use `directory`.

    The file goes when its holder leaves, so that names do not pile up.

    Raises:
        CacheError: the name is no plain file name, or the lock's file cannot be made.
        CacheBusy: whoever has it is stopped. One who is not may take as long as it likes.
    """
    path = directory / plain_name(name)
    held: list[int] = []
    wait = LockWait(path, math.inf, trio.current_time)

    def acquire_nowait() -> bool:
        with cache_errors(f"take the lock {name}"):
            descriptor = _try_lock_file(path)
            if descriptor is None:
                wait.go_on()
                return False
        held.append(descriptor)
        return True

    await wait_acquired(acquire_nowait)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(held.pop())


def _try_lock_file(path: Path) -> int | None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, FILE_MODE)
    if try_flock(descriptor) and is_at(descriptor, path):  # its last holder may have removed it meanwhile
        return descriptor
    os.close(descriptor)
    return None
