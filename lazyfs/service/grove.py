"""The daemon's FUSE connection: made, or taken over from a daemon that is dead.

Its descriptor is kept by the supervisor from before its first use. While nobody answers, the kernel's
requests wait, and the next daemon, which is handed the descriptor, answers them.
"""

import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from lazyfs.errors import MountError
from lazyfs.image.tasks import open_tasks
from lazyfs.mount.answers import Negotiated
from lazyfs.mount.forest import Forest
from lazyfs.mount.forest_answers import ForestAnswers
from lazyfs.mount.forest_mount import take_down
from lazyfs.mount.fuse_mount import MountOptions, attach, check_mount_point, connect_detached
from lazyfs.mount.raw_session import RawSession
from lazyfs.mount.wire import InitFlag
from lazyfs.service.ledger import SavedSession
from lazyfs.service.supervisor import Supervisor

_SETTLED_S: Final = 10.0
_PREFIX: Final = "forest-"


@dataclass(frozen=True, slots=True)
class Connection:
    """A FUSE connection whose file system is mounted, and may not be answered yet.

    Attributes:
        token: names it.
        device_fd: its descriptor.
        predecessor: what a daemon before us settled with the kernel; None if there was none.
    """

    token: str
    device_fd: int
    predecessor: Negotiated | None


def inherited_connection(saved: SavedSession | None, supervisor: Supervisor) -> Connection | None:
    """The connection of a dead daemon that was kept for us; None if there is none to go on with."""
    if saved is None:
        return None
    descriptor = supervisor.take(_PREFIX + saved.token)
    if descriptor is None:
        return None
    return Connection(saved.token, descriptor, Negotiated(saved.minor, InitFlag(saved.offered)))


def new_connection(directory: Path, supervisor: Supervisor) -> Connection:
    """A connection whose file system is mounted at `directory`. For a worker thread.

    Raises:
        AlreadyMounted: something is mounted there.
        MountError: it cannot be mounted.
    """
    place = check_mount_point(directory)
    made = connect_detached(MountOptions("layers"))
    assert made.mount_fd is not None
    try:
        attach(made, place)
    except MountError:
        os.close(made.device_fd)
        raise
    finally:
        os.close(made.mount_fd)
    token = secrets.token_hex(8)
    supervisor.store(_PREFIX + token, made.device_fd)
    return Connection(token, made.device_fd, None)


class Grove:
    """A forest that is being shown.

    Args:
        forest: its files.
        connection: what they are shown by.
        read_timeout_s: how long a reader waits at most.
    """

    def __init__(self, forest: Forest, connection: Connection, read_timeout_s: float) -> None:
        self._forest = forest
        self._connection = connection
        self._session = RawSession(
            connection.device_fd, ForestAnswers(forest, read_timeout_s), connection.predecessor
        )
        self._ending = False

    def __repr__(self) -> str:
        return f"<Grove {self._forest!r} by {self._session!r}>"

    def saved(self) -> SavedSession:
        """What the next daemon must know."""
        settled = self._session.negotiated
        assert settled is not None
        return SavedSession(self._connection.token, settled.minor, int(settled.offered), self._forest.last)

    @asynccontextmanager
    async def shown(self, directory: Path, supervisor: Supervisor) -> AsyncIterator[None]:
        """Answers for as long as the block lasts, then unmounts: trees that use the forest must be gone.

        Raises:
            MountError: the connection ended.
        """
        try:
            async with open_tasks() as nursery:
                nursery.start_soon(self._session.answer)
                nursery.start_soon(self._end_with_session)
                try:
                    with trio.move_on_after(_SETTLED_S):
                        await self._session.initialised.wait()
                    if self._session.negotiated is None:
                        raise MountError("the kernel does not begin to talk FUSE")
                    yield
                finally:
                    self._ending = True
                    self._session.refuse()
                    with trio.CancelScope(shield=True):
                        await trio.to_thread.run_sync(take_down, directory)
                    self._session.end()
        finally:
            supervisor.remove(_PREFIX + self._connection.token)
            os.close(self._connection.device_fd)

    async def _end_with_session(self) -> None:
        await self._session.gone.wait()
        if not self._ending:
            raise self._session.failure or MountError("somebody ended the layers' file system")
