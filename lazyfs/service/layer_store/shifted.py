"""Layers with other owners, for containers in user namespaces: clones of their mounts, one for each mapping.

An overlay needs the mounts of its lower directories no longer than it takes to mount it. So a clone goes when
nobody has asked for it for a while, whatever runs on it; those of a daemon before us go when the next begins.
"""

import logging
import os
from itertools import count
from pathlib import Path

import trio
from msgspec import Struct

from lazyfs.errors import LazyfsError, MountError
from lazyfs.exit_codes import message_of
from lazyfs.mount.syscalls import attach_mapped
from lazyfs.service.chains import make_mount_point, unmounted_at_end

_log = logging.getLogger(__name__)

_Key = tuple[Path, str, str]


class _Clone(Struct, frozen=True):
    """A clone that is mounted.

    Attributes:
        path: where.
        scope: ends when nobody has asked for it for a while; it is taken down then.
    """

    path: Path
    scope: trio.CancelScope


class ShiftedMounts:
    """All clones.

    Args:
        nursery: where they live.
        directory: where they are mounted.
        unused_s: for how long one stays that nobody asks for.
    """

    def __init__(self, nursery: trio.Nursery, directory: Path, unused_s: float = 60.0) -> None:
        self._nursery = nursery
        self._directory = directory
        self._unused_s = unused_s
        self._numbers = count(1)
        self._clones: dict[_Key, _Clone] = {}
        self._turn = trio.Lock()

    def __repr__(self) -> str:
        return f"<ShiftedMounts {len(self._clones)} clones>"

    async def shown(self, mounted: Path, process: int) -> Path:
        """Where a mount is shown with the owners that a process's user namespace gives.

        Raises:
            MountError: the kernel cannot show it so, or the process is gone.
        """
        key = (mounted, *await trio.to_thread.run_sync(_mapping, process))
        async with self._turn:
            clone = self._clones.get(key)
            if clone is None or clone.scope.cancel_called:
                path = self._directory / f"{mounted.name}.{next(self._numbers)}"
                await trio.to_thread.run_sync(_show, mounted, path, process)
                clone = self._clones[key] = _Clone(path, trio.CancelScope())
                self._nursery.start_soon(self._keep, key, clone)
            clone.scope.deadline = trio.current_time() + self._unused_s
        return clone.path

    async def _keep(self, key: _Key, clone: _Clone) -> None:
        """Take a clone down once its time is over."""
        try:
            async with unmounted_at_end(clone.path, "idmapped"):
                with clone.scope:
                    await trio.sleep_forever()
        except LazyfsError as error:
            _log.warning("%s", message_of(error))
        finally:
            if self._clones[key] is clone:
                del self._clones[key]


def _mapping(process: int) -> tuple[str, str]:
    """Which users and groups a process's namespace has.

    Raises:
        MountError: it is gone.
    """
    try:
        return Path(f"/proc/{process}/uid_map").read_text(), Path(f"/proc/{process}/gid_map").read_text()
    except OSError as error:
        raise MountError(f"cannot see the user namespace of process {process}: {error.strerror}") from error


def _show(mounted: Path, path: Path, process: int) -> None:
    """Clone a mount by a process's user namespace, and show it.

    Raises:
        MountError: as for `ShiftedMounts.shown`.
    """
    make_mount_point(path)
    try:
        namespace_fd = os.open(f"/proc/{process}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        try:
            attach_mapped(os.fsencode(mounted), os.fsencode(path), namespace_fd)
        finally:
            os.close(namespace_fd)
    except OSError as error:
        path.rmdir()
        reason = f"{error.strerror} (FUSE takes Linux 6.12, EROFS 5.19)"
        raise MountError(f"cannot show {mounted} with the owners of a user namespace: {reason}") from error
