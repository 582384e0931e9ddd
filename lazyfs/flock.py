"""flock(2) on files and directories: who has one alone. The kernel frees them on death.

A lock belongs to the open file description: it excludes other descriptors of the same process too. It cannot
be waited for with a limit, nor in trio, so such waiting is polling. Nobody waits in silence, or for ever, for
a process that is stopped (SIGSTOP) or hangs.
"""

import errno
import fcntl
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

_log = logging.getLogger(__name__)

_PAUSE_S: Final = 0.02
_FIRST_PAUSE_S: Final = 0.001
_LIMIT_S: Final = 30.0
_FIRST_LOOK_S: Final = 2.0
_LOOK_EVERY_S: Final = 1.0
_TOLD_S: Final = 10.0
_STOPPED_S: Final = 6.0
_LOCKS: Final = Path("/proc/locks")


class Holder(NamedTuple):
    """A process that has a lock.

    Attributes:
        pid: its number.
        stopped: whether it does nothing (SIGSTOP, Ctrl-Z, a debugger).
    """

    pid: int
    stopped: bool

    def __str__(self) -> str:
        if self.stopped:
            return f"process {self.pid}, which is stopped: `kill -CONT {self.pid}` lets it go on"
        return f"process {self.pid}: `kill {self.pid}` ends it if it hangs"


def holder_of(path: Path) -> Holder | None:
    """A process that has a lock on what is at `path`, as far as /proc tells; a stopped one if there is one.

    proc_locks(5) names inodes, which are no proof: the process must have that path open, too. Files are not
    touched for that: they may be of a file system that hangs.
    """
    with suppress(OSError):
        real = os.path.realpath(path)
        inode = str(os.lstat(real).st_ino)
        rows = [row.split() for row in _LOCKS.read_text("ascii", "replace").splitlines()]
        pids = {
            int(row[4]) for row in rows if len(row) > 5 and row[1] == "FLOCK" and row[5].endswith(f":{inode}")
        }
        found = [Holder(pid, _is_stopped(pid)) for pid in sorted(pids) if _has_open(pid, real)]
        return max(found, key=lambda holder: holder.stopped, default=None)
    return None


def _has_open(pid: int, real: str) -> bool:
    with suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                if str(link.readlink()) == real:
                    return True
    return False


def _is_stopped(pid: int) -> bool:
    with suppress(OSError):  # proc_pid_stat(5); the name, in parentheses, may hold anything
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[:1] in ([b"T"], [b"t"])
    return False


class LockWait:
    """A wait for a lock: says who is waited for, and ends it.

    Args:
        path: what is locked.
        limit_s: how long to wait for a process that is not known to be stopped; for others a few seconds.
        now: the time in seconds.
    """

    def __init__(
        self, path: Path, limit_s: float = _LIMIT_S, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = path
        self._limit_s = limit_s
        self._now = now
        self._began = now()
        self._next_look = self._began + min(_FIRST_LOOK_S, limit_s)
        self._stopped_since = math.inf
        self._is_told = False

    def go_on(self) -> None:
        """To be called while the lock is not free, again and again.

        Raises:
            TimeoutError: it is not worth waiting for any longer.
        """
        now = self._now()
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_EVERY_S
        holder = holder_of(self._path)
        is_stopped = holder is not None and holder.stopped
        if not is_stopped:
            self._stopped_since = math.inf
        else:
            self._stopped_since = min(self._stopped_since, now)
        who = str(holder or f"another process: `fuser -v {self._path}` names it")
        waited_s = now - self._began
        if waited_s >= self._limit_s or (is_stopped and now - self._stopped_since >= _STOPPED_S):
            raise TimeoutError(errno.ETIMEDOUT, f"locked for {waited_s:.0f} s by {who}", str(self._path))
        is_ours = holder is not None and holder.pid == os.getpid()
        if not self._is_told and not is_ours and (is_stopped or waited_s >= _TOLD_S):
            _log.warning("waiting for a lock on %s: it is held by %s", self._path, who)
            self._is_told = True


def try_flock(descriptor: int) -> bool:
    """Takes the lock exclusively, without waiting; a shared lock that this descriptor has may get lost."""
    return _try(descriptor, fcntl.LOCK_EX)


def _try(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
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


def wait_flock(descriptor: int, path: Path, *, shared: bool = False, limit_s: float = _LIMIT_S) -> None:
    """Takes the lock; blocks until it is free.

    Args:
        descriptor: of what is locked.
        path: where that is.
        shared: whether others may have it at the same time.
        limit_s: how long to wait, as for LockWait.

    Raises:
        TimeoutError: it did not get free.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    if _try(descriptor, kind):
        return
    wait = LockWait(path, limit_s)
    pause = _FIRST_PAUSE_S
    while not _try(descriptor, kind):
        wait.go_on()
        time.sleep(pause)
        pause = min(2 * pause, _PAUSE_S)


@contextmanager
def directory_locked(path: Path, *, follow: bool = False, limit_s: float = _LIMIT_S) -> Iterator[None]:
    """Holds a directory's lock exclusively; blocks until it is free.

    Args:
        path: the directory.
        follow: whether a symlink to it will do.
        limit_s: how long to wait, as for LockWait.

    Raises:
        TimeoutError: it did not get free.
        OSError: there is no such directory.
    """
    descriptor = _open_directory(path, 0 if follow else os.O_NOFOLLOW)
    try:
        wait_flock(descriptor, path, limit_s=limit_s)
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
