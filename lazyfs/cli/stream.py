"""Output of much data."""

import os
from pathlib import Path
from typing import Final

import trio

from lazyfs.cli.output import STDOUT, naming

_FLUSH_SIZE: Final = 1 << 20


class Output:
    """Writes in large pieces from a worker thread, so that a slow reader stops nothing else.

    Args:
        descriptor: where to; stdout by default.
        path: what that is, for messages.
    """

    def __init__(self, descriptor: int = 1, path: Path = STDOUT) -> None:
        self._descriptor = descriptor
        self._path = path
        self._waiting: list[bytes] = []
        self._size = 0

    async def write(self, data: bytes) -> None:
        """Write `data`, soon.

        Raises:
            OSError: whoever read has gone, or the disk is full.
        """
        self._waiting.append(data)
        self._size += len(data)
        if self._size >= _FLUSH_SIZE:
            await self.flush()

    async def flush(self) -> None:
        """Write what waits; errors as for `write`."""
        data = b"".join(self._waiting)
        self._waiting.clear()
        self._size = 0
        with naming(self._path):
            await trio.to_thread.run_sync(_write_out, self._descriptor, data)


def _write_out(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]
