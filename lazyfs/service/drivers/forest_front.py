"""The forest's file system, shown at a directory for as long as the daemon, and the next one, run."""

import logging
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path

from lazyfs.errors import MountError
from lazyfs.mount.drivers import why_not_erofs
from lazyfs.mount.forest import Forest
from lazyfs.mount.forest_answers import ForestAnswers
from lazyfs.service.ledger import SavedSession
from lazyfs.service.options import ServiceOptions
from lazyfs.service.survival.kept_session import Connection, KeptSession, new_connection
from lazyfs.service.survival.supervisor import Supervisor

_log = logging.getLogger(__name__)


class ForestFront:
    """Shows a forest, or has it for nobody: trees with connections of their own are not mounted from there.

    Args:
        directory: where.
        supervisor: keeps the connection.
        connection: by which it is shown; None for nowhere.
        last: the highest number that a daemon before us gave to a file of it.
        timeout_s: how long whoever reads waits at most.

    Attributes:
        forest: it, empty at first.
    """

    def __init__(
        self,
        directory: Path,
        supervisor: Supervisor,
        connection: Connection | None,
        last: int,
        timeout_s: float,
    ) -> None:
        self.forest = Forest(last)
        self._directory = directory
        self._supervisor = supervisor
        self._session: KeptSession | None = None
        if connection is not None:
            self._session = KeptSession(ForestAnswers(self.forest, timeout_s), connection)

    def __repr__(self) -> str:
        return f"<ForestFront at {self._directory if self._session else 'no directory'}>"

    @property
    def is_connected(self) -> bool:
        """Whether it is shown anywhere."""
        return self._session is not None

    def saved(self) -> SavedSession | None:
        """What the next daemon must know; None if there is nothing to go on with."""
        return self._session.saved(self.forest.last) if self._session is not None else None

    def shown(self) -> AbstractAsyncContextManager[None]:
        """Shows it while the block lasts; then unmounts it: what uses it must be gone.

        Raises:
            MountError: (on entry, or later) its connection ended.
        """
        if self._session is None:
            return nullcontext()
        return self._session.shown(self._directory, self._supervisor)


def connect_forest(options: ServiceOptions, supervisor: Supervisor) -> Connection | None:
    """A new connection for the forest; None if trees are to have their own. For a worker thread.

    Raises:
        MountError: there can be none, and nothing else is wanted.
    """
    if options.driver == "fuse":
        return None
    reason = why_not_erofs()
    if reason is None:
        try:
            return new_connection("forest", options.forest, supervisor)
        except MountError as error:
            reason = str(error)
    if options.driver == "erofs":
        raise MountError(f"the erofs driver does not work here: {reason}")
    _log.warning("trees are served by FUSE, the erofs driver does not work here: %s", reason)
    return None
