"""Whether there is room for more layer data: above the free-space floor, and below the quota.

Both are asked seldom and answered by every write. The quota is one for all processes that use the cache: a
small file has how much was measured last and how much was granted since, and each process takes slices of it.
Where there is no room, the writer makes some (`reclaim`); where none can be made, the write is refused, and
for a while nobody tries again.
"""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from lazyfs.cache.files import FILE_MODE, write_all
from lazyfs.cache.free_space import FreeSpace
from lazyfs.cache.locks import byte_locked

_RECORD_SIZE: Final = 16
_PATIENCE_S: Final = 2.0
_SMALLEST_SLICE: Final = 64 << 10
_LARGEST_SLICE: Final = 64 << 20
_SLICES: Final = 64
_TRY_AGAIN_AFTER: Final = 64 << 20  # bytes that were refused


class Admission(Protocol):
    """Admits writes of layer data, or not. Safe in any thread."""

    @property
    def low(self) -> bool:
        """Whether the last word was that there is no room."""

    def admits(self, size: int) -> bool:
        """Whether `size` more bytes may be written. May block while room is made."""

    def exhausted(self) -> None:
        """A write was refused by the file system."""


class Record(NamedTuple):
    """What all processes know of the cache's size, in bytes.

    Attributes:
        measured: what it took when it was measured last.
        granted: what writers were granted since.
    """

    measured: int
    granted: int


class Ledger:
    """The quota and how much of it is taken.

    Args:
        path: of the file that says so.
        quota_bytes: how much the cache may take.
        measure: says how much it takes now.
    """

    def __init__(self, path: Path, quota_bytes: int, measure: Callable[[], int]) -> None:
        self._path = path
        self._quota = quota_bytes
        self._measure = measure
        self.slice = min(max(quota_bytes // _SLICES, _SMALLEST_SLICE), _LARGEST_SLICE)

    def __repr__(self) -> str:
        return f"Ledger(quota_bytes={self._quota})"

    @property
    def low_mark(self) -> int:
        """Down to how many bytes room is made."""
        return self._quota - self._quota // 10

    @property
    def high_mark(self) -> int:
        """From how many bytes on room is made before a writer has to ask for it."""
        return self._quota - self._quota // 20

    def take(self, size: int) -> bool:
        """Takes `size` bytes of what is left; False if that is less."""

        def grant(record: Record) -> Record:
            fits = record.measured + record.granted + size <= self._quota
            return record._replace(granted=record.granted + size) if fits else record

        before, after = self._change(grant)
        return after != before

    def has_left(self, size: int) -> bool:
        """Whether a slice, or `size` bytes, could be taken now."""
        return self.expects() + max(size, self.slice) <= self._quota

    def expects(self) -> int:
        """How much the cache takes if all that was granted was written."""
        record, _ = self._change(lambda record: record)
        return record.measured + record.granted

    def settle(self, total: int, before: int) -> None:
        """The cache was measured, when `before` bytes were expected, and takes `total` now."""

        def settled(record: Record) -> Record:
            return Record(total, max(0, record.measured + record.granted - before))

        self._change(settled)

    def _change(self, change: Callable[[Record], Record]) -> tuple[Record, Record]:
        """The record before and after a change, alone among all processes.

        Where it cannot be kept, what is there is measured each time.
        """
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, FILE_MODE)
        except OSError:
            record = Record(self._measure(), 0)
            return record, change(record)
        try:
            with byte_locked(descriptor, 0, _PATIENCE_S):
                data = os.pread(descriptor, _RECORD_SIZE, 0)
                record = Record(int.from_bytes(data[:8], "little"), int.from_bytes(data[8:], "little"))
                if len(data) < _RECORD_SIZE:
                    record = Record(self._measure(), 0)
                changed = change(record)
                packed = b"".join(value.to_bytes(8, "little") for value in changed)
                if packed != data:
                    write_all(descriptor, packed, 0)
                return record, changed
        except OSError:
            record = Record(self._measure(), 0)
            return record, change(record)
        finally:
            os.close(descriptor)


class Room:
    """Admits writes of layer data while there is room, or while room can be made.

    Args:
        space: the file system's free space.
        ledger: the quota; None for none.
        reclaim: makes room for so many bytes, as far as it can.
    """

    def __init__(self, space: FreeSpace, ledger: Ledger | None, reclaim: Callable[[int], object]) -> None:
        self._space = space
        self._ledger = ledger
        self._reclaim = reclaim
        self._left = 0
        self._refused = _TRY_AGAIN_AFTER
        self._low = False
        self._is_slow = False
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Room({self._space!r}, {self._ledger!r}, low={self._low})"

    @property
    def low(self) -> bool:
        """Whether the last word was that there is no room."""
        return self._low

    def admits(self, size: int) -> bool:
        """Whether `size` more bytes may be written. May block while room is made.

        If that takes long, only who makes it waits: others have readers, and are refused.
        """
        if not self._lock.acquire(timeout=0 if self._is_slow else _PATIENCE_S):
            self._is_slow = True
            return False
        try:
            return self._admits(size)
        finally:
            self._is_slow = False
            self._lock.release()

    def _admits(self, size: int) -> bool:
        if self._low and self._refused < _TRY_AGAIN_AFTER:
            self._refused += size
            return False
        fits = not self._low and self._space.admits(size) and self._within_quota(size)
        if not fits:
            self._reclaim(size)
            fits = self._space.asked(size) and self._within_quota(size)
            self._refused = 0
        self._low = not fits
        return fits

    def exhausted(self) -> None:
        """A write was refused by the file system: make room before the next one."""
        self._space.exhausted()

    def _within_quota(self, size: int) -> bool:
        if self._ledger is None:
            return True
        if self._left < size:
            slice_size = max(size, self._ledger.slice)
            if not self._ledger.take(slice_size):
                return False
            self._left += slice_size
        self._left -= size
        return True
