"""Writes down what must outlive the daemon, whenever that changes: once for all changes of a moment."""

import logging
from collections.abc import Callable

import trio

from lazyfs.errors import CacheError
from lazyfs.service.ledger import Ledger, State

_log = logging.getLogger(__name__)


class Scribe:
    """Keeps the ledger. Where it cannot be written, everything goes on, but a restart would lose something.

    Args:
        ledger: where to write.
        compose: gives what is to be written.
    """

    def __init__(self, ledger: Ledger, compose: Callable[[], State]) -> None:
        self._ledger = ledger
        self._compose = compose
        self._turn = trio.Lock()
        self._wanted = self._written = 0
        self._changed = trio.Event()

    def __repr__(self) -> str:
        return f"<Scribe, {self._wanted - self._written} changes behind>"

    def soon(self) -> None:
        """Something has changed; that need not be on disk before anything else happens."""
        self._wanted += 1
        self._changed.set()

    async def write(self) -> None:
        """Returns when all that has changed up to now is written down."""
        self._wanted += 1
        await self._write(self._wanted)

    async def run(self) -> None:
        """Write what changes, until cancelled."""
        while True:
            await self._changed.wait()
            self._changed = trio.Event()
            await self._write(self._wanted)

    async def _write(self, wanted: int) -> None:
        async with self._turn:
            if self._written >= wanted:
                return
            upto, state = self._wanted, self._compose()  # nothing is awaited between these
            try:
                await trio.to_thread.run_sync(self._ledger.save, state)
            except CacheError as error:
                _log.error("a restart would not find everything again: %s", error)
            else:
                self._written = upto
