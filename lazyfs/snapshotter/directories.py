"""The directories of snapshots, `snapshots/ID/{fs,work}`, and how they come, go and are measured.

A directory is made before its record and removed after it, so that whatever a kill leaves is a directory
without a record: `stray` finds those.
"""

import ctypes
import os
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from lazyfs.removal import remove_tree
from lazyfs.snapshotter.model import DiskRefused, Usage

_BLOCK: Final = 512  # of st_blocks: stat(2)


class Directories:
    """The directories of all snapshots.

    Args:
        root: where they are; made if it is not there.

    Raises:
        DiskRefused: it cannot be made.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        with _refusals(f"cannot make {root}"):
            root.mkdir(mode=0o700, exist_ok=True)

    def highest(self) -> int:
        """The highest id that has a directory; 0 without any."""
        return max(self._numbers(), default=0)

    def upper(self, number: int) -> Path:
        """What the snapshot adds to its parents."""
        return self._root / str(number) / "fs"

    def work(self, number: int) -> Path:
        """Overlayfs's own directory beside it."""
        return self._root / str(number) / "work"

    def make(self, number: int) -> None:
        """Make the directories of a new snapshot, empty.

        Raises:
            DiskRefused: they cannot be made.
        """
        with _refusals("cannot make a snapshot's directory"):
            self.upper(number).parent.mkdir(mode=0o700)
            self.upper(number).mkdir()
            self.upper(number).chmod(0o755)  # whatever the umask
            self.work(number).mkdir(mode=0o711)

    def dress(self, number: int, status: os.stat_result, owner: tuple[int, int]) -> None:
        """Give a snapshot's root an owner, and mode and times of its parent's.

        Overlayfs takes those of a merged root from the upper directory.

        Raises:
            DiskRefused: they cannot be set.
        """
        with _refusals("cannot give a snapshot's root the attributes of its parent's"):
            upper = self.upper(number)
            os.chown(upper, *owner)
            upper.chmod(stat.S_IMODE(status.st_mode))
            os.utime(upper, ns=(status.st_atime_ns, status.st_mtime_ns))

    def usage(self, number: int) -> Usage:
        """What a snapshot's own files take; those that vanish meanwhile do not count.

        Hard links count once. Nothing below a mount is looked at.

        Raises:
            DiskRefused: something in it cannot be looked at, as its path is too long.
        """
        seen: set[int] = set()
        size = 0
        with _refusals("cannot measure a snapshot"):
            for status in _statuses(os.fspath(self.upper(number))):
                if status.st_ino not in seen:
                    seen.add(status.st_ino)
                    size += status.st_blocks * _BLOCK
        return Usage(size, len(seen))

    def flush(self, number: int) -> None:
        """See that a snapshot's files are on disk, with all else of that file system.

        Raises:
            DiskRefused: they cannot be written.
        """
        with _refusals("cannot write a snapshot to disk"):
            descriptor = os.open(self.upper(number), os.O_RDONLY | os.O_DIRECTORY)
            try:
                if ctypes.CDLL(None, use_errno=True).syncfs(descriptor):
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            finally:
                os.close(descriptor)

    def remove(self, number: int) -> None:
        """Remove a snapshot's directories; what is not there need not be.

        Raises:
            DiskRefused: something in them cannot be removed: a mount, most often.
        """
        with _refusals("cannot remove a snapshot's directory"):
            remove_tree(self._root / str(number))

    def stray(self, known: Collection[int]) -> list[int]:
        """The ids of all directories but those of known snapshots."""
        return sorted(number for number in self._numbers() if number not in known)

    def _numbers(self) -> Iterator[int]:
        with os.scandir(self._root) as entries:
            yield from (int(entry.name) for entry in entries if entry.name.isdecimal())


def _statuses(top: str) -> Iterator[os.stat_result]:
    """The status of a directory and all below it on the same file system."""
    pending = [top]
    device = None
    while pending:
        path = pending.pop()
        with suppress(FileNotFoundError, NotADirectoryError):
            status = os.lstat(path)
            device = status.st_dev if device is None else device
            if status.st_dev != device:
                continue
            yield status
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                        continue
                    with suppress(FileNotFoundError):
                        yield entry.stat(follow_symlinks=False)


@contextmanager
def _refusals(doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DiskRefused(f"{doing}: {error.strerror or error}") from error
