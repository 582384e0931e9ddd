"""The driver of the daemon where it may choose: EROFS as long as it works, FUSE from then on."""

import errno
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

from lazyfs.errors import AlreadyMounted, MountError
from lazyfs.mount.syscalls import MountRefused
from lazyfs.service.chains import Driver, NoteDevices
from lazyfs.service.ledger import Entry

_NEVER: Final = frozenset({errno.ENODEV, errno.ENOSYS, errno.ENOTBLK, errno.EPERM})  # whatever the tree

_log = logging.getLogger(__name__)


class FirstThatWorks:
    """A `chains.Driver`.

    Args:
        first: is taken until the kernel cannot mount that way.
        other: is taken then, and for a tree that `first` fails to mount.
    """

    def __init__(self, first: Driver, other: Driver) -> None:
        self._first: Driver | None = first
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
                if isinstance(error, MountRefused) and error.errno in _NEVER:
                    _log.warning("from now on trees are served by FUSE: %s", error)
                    self._first = None
                else:
                    _log.warning("%s is served by FUSE: %s", mount_point, error)
            yield name or await stack.enter_async_context(self._other.mounted(entry, mount_point, note))
