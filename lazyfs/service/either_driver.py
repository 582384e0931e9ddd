"""The driver of the daemon where it may choose: EROFS as long as it works, FUSE from then on."""

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from lazyfs.errors import AlreadyMounted, MountError
from lazyfs.service.chains import Driver, NoteDevices
from lazyfs.service.ledger import Entry

_log = logging.getLogger(__name__)


class FirstThatWorks:
    """A `chains.Driver`.

    Args:
        first: is taken until it fails to mount; None if that is known to.
        other: is taken then.
    """

    def __init__(self, first: Driver | None, other: Driver) -> None:
        self._first = first
        self._other = other

    @asynccontextmanager
    async def mounted(self, entry: Entry, mount_point: Path, note: NoteDevices) -> AsyncIterator[str]:
        """As Driver.mounted says."""
        async with AsyncExitStack() as stack:
            name = ""
            try:
                if self._first is not None:
                    name = await stack.enter_async_context(self._first.mounted(entry, mount_point, note))
            except AlreadyMounted:
                raise
            except MountError as error:
                _log.warning("from now on trees are served by FUSE: %s", error)
                self._first = None
            yield name or await stack.enter_async_context(self._other.mounted(entry, mount_point, note))
