"""The layer store's file system, shown at a directory for as long as the daemon, and the next one, run."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio

from lazyfs.mount.forest_mount import take_down
from lazyfs.mount.fuse_mount import MountOptions
from lazyfs.mount.store_answers import StoreAnswers
from lazyfs.service.layer_store.stock import LayerStock
from lazyfs.service.ledger import SavedStore
from lazyfs.service.survival.kept_session import Connection, KeptSession, new_connection
from lazyfs.service.survival.supervisor import Supervisor

_KIND: Final = "store"


class StoreFront:
    """Shows a stock.

    Args:
        directory: where; None for nowhere.
        supervisor: keeps the connection.
        inherited: that of a daemon before us, whose file system is there; None if there is none.
        timeout_s: how long whoever looks something up waits at most.
    """

    def __init__(
        self,
        directory: Path | None,
        supervisor: Supervisor,
        inherited: Connection | None,
        timeout_s: float,
    ) -> None:
        self._directory = directory
        self._supervisor = supervisor
        self._inherited = inherited
        self._timeout_s = timeout_s
        self._session: KeptSession | None = None

    def __repr__(self) -> str:
        return f"<StoreFront at {self._directory}>"

    def saved(self) -> SavedStore | None:
        """What the next daemon must know, before anything is mounted too; None if nothing is to be shown."""
        if self._directory is None:
            return None
        source = self._session or self._inherited
        return SavedStore(self._directory, source.saved() if source is not None else None)

    @asynccontextmanager
    async def shown(self, stock: LayerStock) -> AsyncIterator[None]:
        """Shows a stock while the block lasts.

        Raises:
            MountError: it cannot be shown, or somebody has ended it.
        """
        if self._directory is None:
            yield
            return
        connection = self._inherited
        if connection is None:
            connection = await trio.to_thread.run_sync(self._connected, self._directory)
        self._session = KeptSession(StoreAnswers(stock, self._timeout_s), connection)
        async with self._session.shown(self._directory, self._supervisor):
            yield

    def _connected(self, directory: Path) -> Connection:
        return new_connection(_KIND, directory, self._supervisor, read_only=False)


def take_down_store(directory: Path) -> None:
    """Unmount a layer store that nobody serves, if there is one: a disk may be mounted there.

    Raises:
        MountError: it cannot be unmounted.
    """
    take_down(directory, MountOptions(_KIND).source)
