"""The life of a mount: mount, answer, and be unmounted, by us or by anybody.

A session answers requests in a scope of its own, which is closed last: whatever mounts or unmounts over it
does so in a worker thread while requests are still answered, since either may need an answer. It ends when

* the caller cancels it: reads that wait fail, it is unmounted (if it is in use: lazily), then closed;
* anybody unmounts it: the connection dies with its last user, reads that nobody waits for are dropped;
* it fails, which would be a bug: the same, and MountError.
"""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import trio

from lazyfs.errors import MountError
from lazyfs.mount.answers import Answers
from lazyfs.mount.fuse_mount import Connection, MountOptions, attach, check_mount_point, connect
from lazyfs.mount.mounts import Busy, Mount, mount_at, unmount, unmount_apart
from lazyfs.mount.raw_session import RawSession
from lazyfs.mount.tuning import set_read_ahead

_log = logging.getLogger(__name__)


class Session(Protocol):
    """Whatever answers a connection.

    Attributes:
        gone: set when no more will be answered.
        failure: why, if it is an error.
    """

    gone: trio.Event
    failure: MountError | None

    async def answer(self) -> None:
        """Answers until the connection dies or `end` is called, whoever cancels."""

    def refuse(self) -> None:
        """Answers every read that has to wait with an error from now on, those under way at once."""

    def end(self) -> None:
        """Ends answering, now."""


async def serve(
    answers: Answers,
    mountpoint: Path,
    options: MountOptions,
    *,
    task_status: trio.TaskStatus[Mount] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Mounts what `answers` knows at `mountpoint` and answers until it is unmounted or cancelled.

    Reports, once it is mounted, the mount as the kernel's table has it.

    Raises:
        AlreadyMounted: something is mounted there.
        MountError: it cannot be mounted; the message says what to do.
    """
    mount_point = await trio.to_thread.run_sync(check_mount_point, mountpoint)
    connection = await trio.to_thread.run_sync(connect, mount_point, options)

    def mount() -> Mount:
        attach(connection, mount_point)
        mounted = find_mounted(mount_point)
        try:
            device = os.stat(mount_point).st_dev  # noqa: PTH116  # bytes; answered by us, after the first exchange
            set_read_ahead(device, options.read_ahead_kb, options.knob)
        except OSError as error:  # the mount is there all the same, and has to be ended like one
            _log.warning("read-ahead stays as it is: %s", error)
        return mounted

    session = RawSession(connection.device_fd, answers)
    await run_session(session, connection, mount, task_status=task_status)


async def run_session(
    session: Session,
    connection: Connection,
    mount: Callable[[], Mount],
    *,
    task_status: trio.TaskStatus[Mount] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answers a connection until it dies or we are cancelled.

    Args:
        session: over its device.
        connection: whose descriptors this call closes.
        mount: called in a worker thread once requests are answered; attaches what is to be seen.
        task_status: gets what `mount` returns. That is what is unmounted at the end.

    Raises:
        MountError: from `mount`, or the session failed.
    """
    try:
        await _live(session, connection, mount, task_status)
    finally:
        os.close(connection.device_fd)
    if session.failure is not None:
        raise session.failure


async def _live(
    session: Session,
    connection: Connection,
    mount: Callable[[], Mount],
    task_status: trio.TaskStatus[Mount],
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.answer)
        mounted: Mount | None = None
        try:
            # Not to be cancelled before it begins: it must let go of the mount's descriptor.
            with trio.CancelScope(shield=True):
                mounted = await trio.to_thread.run_sync(_mount_and_let_go, mount, connection)
                task_status.started(mounted)
            await session.gone.wait()
        except MountError as error:
            session.failure = session.failure or error
        finally:
            session.refuse()
            with trio.CancelScope(shield=True):
                if mounted is not None:
                    await trio.to_thread.run_sync(_unmount_if_there, mounted)
                session.end()


def _mount_and_let_go(mount: Callable[[], Mount], connection: Connection) -> Mount:
    """Calls `mount`, then closes the mount's descriptor: while it is open nobody can unmount."""
    try:
        return mount()
    except OSError as error:
        raise MountError(f"cannot mount: {error}") from error
    finally:
        if connection.mount_fd is not None:
            os.close(connection.mount_fd)


def find_mounted(mount_point: bytes) -> Mount:
    """What has just been mounted at `mount_point`.

    Raises:
        MountError: it is gone already.
    """
    mounted = mount_at(Path(os.fsdecode(mount_point)))
    if mounted is None:
        raise MountError(f"{os.fsdecode(mount_point)} was unmounted at once")
    return mounted


def _unmount_if_there(mounted: Mount) -> None:
    """Unmounts this very mount, lazily if it is in use; nothing that was mounted there since."""
    path = Path(os.fsdecode(mounted.mount_point))
    there = mount_at(path)
    if there is None or there.mount_id != mounted.mount_id:
        return
    try:
        try:
            if not unmount_apart(path):
                unmount(path)
        except Busy:
            _log.warning("%s is still in use: whoever uses it will get errors", path)
            unmount(path, lazy=True)
    except MountError as error:
        _log.warning("%s", error)
