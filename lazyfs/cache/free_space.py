"""How much room the cache's file system leaves: asked seldom, answered by every write."""

import os
import threading
from pathlib import Path
from typing import Final

_CHECK_EVERY: Final = 64 << 20


class FreeSpace:
    """Admits writes of layer data while the file system has more than a floor of free bytes.

    The file system is asked once per `check_every` bytes that writers wanted to write, so at most that much
    goes below the floor per process, and a refusal ends that much later. Safe in any thread.
    """

    def __init__(self, path: Path, floor_bytes: int = 0, check_every: int = _CHECK_EVERY) -> None:
        self._path = path
        self._floor = floor_bytes
        self._every = check_every
        self._unchecked = check_every
        self._low = False
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"FreeSpace({str(self._path)!r}, floor_bytes={self._floor}, low={self._low})"

    @property
    def low(self) -> bool:
        """Whether the last word was that there is no room."""
        return self._low

    def admits(self, size: int) -> bool:
        """Whether `size` more bytes may be written."""
        with self._lock:
            self._unchecked += size
            if self._unchecked >= self._every:
                self._unchecked = 0
                self._low = self._available() < self._floor
            return not self._low

    def asked(self, size: int) -> bool:
        """Whether the file system, asked now, has `size` bytes above the floor."""
        with self._lock:
            self._unchecked = size
            self._low = self.missing(size) > 0
            return not self._low

    def missing(self, size: int) -> int:
        """How many bytes the file system lacks for `size` more above the floor; 0 if none."""
        return max(0, self._floor + size - self._available())

    def exhausted(self) -> None:
        """A write was refused by the file system: admit no more before it is asked again."""
        with self._lock:
            self._low = True
            self._unchecked = 0

    def _available(self) -> int:
        try:
            state = os.statvfs(self._path)
        except OSError:
            return -1
        return state.f_bavail * state.f_frsize
