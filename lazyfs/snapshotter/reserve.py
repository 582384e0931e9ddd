"""Room on disk that is held so that removals can be recorded where there is no other.

To forget a snapshot is to write, too. On a full disk it would fail, and with it all that could make room.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

SIZE: Final = 4 << 20
"""Four times sqlite's log, which begins anew after 256 pages of 4 KiB: then removals need no more room."""

_PIECE: Final = 32 << 10  # what one removal takes, and little else can grab meanwhile
_ALLOCATED: Final = 512  # the unit of st_blocks: stat(2)


class Reserve:
    """A file that holds room, of `SIZE` bytes where there is as much; not to have it is no error.

    Args:
        path: of the file, made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held = 0
        with suppress(OSError), self._opened() as descriptor:
            status = os.fstat(descriptor)
            self._held = min(status.st_size, status.st_blocks * _ALLOCATED)  # a copy may be sparse
            os.ftruncate(descriptor, self._held)
        self.fill()

    def fill(self) -> None:
        """Hold as much as there is room for."""
        step = SIZE - self._held
        if step < _PIECE:
            return
        with suppress(OSError), self._opened() as descriptor:
            while step >= _PIECE:
                try:
                    os.posix_fallocate(descriptor, self._held, step)
                except OSError:
                    os.ftruncate(descriptor, self._held)
                    step //= 2
                else:
                    self._held += step
                    step = SIZE - self._held

    def give(self) -> bool:
        """Give a piece of it back to the disk; False if nothing is held."""
        if not self._held:
            return False
        self._held = max(0, self._held - _PIECE)
        with suppress(OSError), self._opened() as descriptor:
            os.ftruncate(descriptor, self._held)
        return True

    @contextmanager
    def _opened(self) -> Iterator[int]:
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
