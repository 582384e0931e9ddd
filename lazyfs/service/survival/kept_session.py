"""A FUSE connection of the daemon that outlives its process: made, or taken over from a daemon that is dead.

Its descriptor is kept by the supervisor from before its first use. While nobody answers, the kernel's
requests wait, and the next daemon, which is handed the descriptor, answers them.
"""

import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio
from msgspec import Struct

from lazyfs.errors import MountError
from lazyfs.image.tasks import open_tasks
from lazyfs.mount.answers import Answers, Negotiated
from lazyfs.mount.forest_mount import take_down
from lazyfs.mount.fuse_mount import MountOptions, attach, check_mount_point, connect_detached
from lazyfs.mount.raw_session import RawSession
from lazyfs.mount.wire_init import InitFlag
from lazyfs.service.ledger import SavedSession
from lazyfs.service.survival.supervisor import Supervisor

_SETTLED_S: Final = 10.0


class Connection(Struct, frozen=True):
    """A FUSE connection whose file system is mounted, and may not be answered yet.

    Attributes:
        name: under which it is kept.
        token: what makes it another one than those before.
        device_fd: its descriptor.
        predecessor: what a daemon before us settled with the kernel; None if there was none.
    """

    name: str
    token: str
    device_fd: int
    predecessor: Negotiated | None

    def saved(self) -> SavedSession | None:
        """What a daemon before us saved of it; None if there was none."""
        settled = self.predecessor
        return SavedSession(self.token, settled.minor, int(settled.offered), 0) if settled else None


def _kept_name(kind: str, token: str) -> str:
    return f"{kind}-{token}"


def inherited_connection(kind: str, saved: SavedSession | None, supervisor: Supervisor) -> Connection | None:
    """The connection of a dead daemon that was kept for us; None if there is none to go on with.

    Args:
        kind: what is shown by it, in a word.
        saved: what is known of it.
        supervisor: who kept it.
    """
    if saved is None:
        return None
    name = _kept_name(kind, saved.token)
    descriptor = supervisor.take(name)
    if descriptor is None:
        return None
    return Connection(name, saved.token, descriptor, Negotiated(saved.minor, InitFlag(saved.offered)))


def new_connection(
    kind: str, directory: Path, supervisor: Supervisor, *, read_only: bool = True
) -> Connection:
    """A connection whose file system is mounted at `directory`, for nobody but root. For a worker thread.

    Args:
        kind: what is shown by it, in a word; the mount table shows it too.
        directory: where.
        supervisor: keeps it.
        read_only: as for MountOptions.

    Raises:
        AlreadyMounted: something is mounted there.
        MountError: it cannot be mounted.
    """
    place = check_mount_point(directory)
    made = connect_detached(MountOptions(kind, read_only=read_only))
    assert made.mount_fd is not None
    try:
        attach(made, place)
    except MountError:
        os.close(made.device_fd)
        raise
    finally:
        os.close(made.mount_fd)
    token = secrets.token_hex(8)
    name = _kept_name(kind, token)
    supervisor.store(name, made.device_fd)
    return Connection(name, token, made.device_fd, None)


class KeptSession:
    """What is answered by such a connection.

    Args:
        answers: it.
        connection: see above.
    """

    def __init__(self, answers: Answers, connection: Connection) -> None:
        self._connection = connection
        self._session = RawSession(connection.device_fd, answers, connection.predecessor)
        self._ending = False

    def __repr__(self) -> str:
        return f"<KeptSession {self._connection.name} by {self._session!r}>"

    def saved(self, last: int = 0) -> SavedSession | None:
        """What the next daemon must know, `last` as there; None before kernel and we have begun to talk."""
        settled = self._session.negotiated
        if settled is None:
            return None
        return SavedSession(self._connection.token, settled.minor, int(settled.offered), last)

    @asynccontextmanager
    async def shown(self, directory: Path, supervisor: Supervisor) -> AsyncIterator[None]:
        """Answers for as long as the block lasts, then unmounts: what uses it must be gone.

        Raises:
            MountError: the connection ended.
        """
        try:
            async with open_tasks() as nursery:
                nursery.start_soon(self._session.answer)
                nursery.start_soon(self._end_with_session, directory)
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
            supervisor.remove(self._connection.name)
            os.close(self._connection.device_fd)

    async def _end_with_session(self, directory: Path) -> None:
        await self._session.gone.wait()
        if not self._ending:
            raise self._session.failure or MountError(f"somebody ended the file system at {directory}")
