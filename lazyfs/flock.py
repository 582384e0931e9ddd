"""flock(2) on files and directories: who has one alone. The kernel frees them on death.

A lock belongs to the open file description: it excludes other descriptors of the same process too. It cannot
be waited for with a limit, nor in trio, so such waiting is polling.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_PAUSE_S: Final = 0.02


def try_flock(descriptor: int) -> bool:
    """Takes the lock exclusively, without waiting; a shared lock that this descriptor has may get lost."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def flock_within(descriptor: int, patience_s: float) -> bool:
    """Whether the exclusive lock could be taken within `patience_s` seconds. Blocks for as long."""
    deadline = time.monotonic() + patience_s
    while not try_flock(descriptor):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_PAUSE_S)
    return True


@contextmanager
def directory_locked(path: Path, *, follow: bool = False) -> Iterator[None]:
    """Holds a directory's lock exclusively; blocks until it is free.

    Args:
        path: the directory.
        follow: whether a symlink to it will do.

    Raises:
        OSError: there is no such directory.
    """
    descriptor = _open_directory(path, 0 if follow else os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def directory_owned(path: Path) -> Iterator[bool]:
    """Holds a directory's lock, and makes the directory if need be; False if somebody else holds it.

    Raises:
        OSError: it cannot be made.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = _open_directory(path)
    try:
        yield try_flock(descriptor)
    finally:
        os.close(descriptor)


def _open_directory(path: Path, flags: int = 0) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | flags)
