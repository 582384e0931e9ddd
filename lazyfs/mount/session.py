"""The life of a mount: mount, answer, and be unmounted, by us or by anybody.

A session answers requests in a scope of its own, which is closed last: whatever mounts or unmounts over it
does so in a worker thread while requests are still answered, since either may need an answer. It ends when

* the caller cancels it: reads that wait fail, it is unmounted (if it is in use: lazily), then closed;
* anybody unmounts it: the connection dies with its last user, reads that nobody waits for are dropped;
* pyfuse3 fails, which would be a bug: the same, and MountError.

pyfuse3's session is a global of its module: one mount per process at a time.
"""

import logging
import os
import select
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pyfuse3
import trio

from lazyfs.errors import MountError
from lazyfs.mount.fuse_mount import Connection, MountOptions, attach, check_mount_point, connect
from lazyfs.mount.handlers import ReadOnlyOperations
from lazyfs.mount.mounts import Busy, Mount, mount_at, unmount, unmount_apart
from lazyfs.mount.tuning import raise_max_background, set_read_ahead

# pyfuse3 runs a task per request under way. A read that waits for the network holds its task, so there must
# always be one more for the look-up that needs no network; idle ones are kept down to the first number.
_IDLE_TASKS: Final = 8
_MOST_TASKS: Final = 1000

_log = logging.getLogger(__name__)


async def serve(
    operations: ReadOnlyOperations,
    mountpoint: Path,
    options: MountOptions,
    *,
    task_status: trio.TaskStatus[Mount] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Mounts `operations` at `mountpoint` and answers until it is unmounted or cancelled.

    Reports, once it is mounted, the mount as the kernel's table has it.

    Raises:
        AlreadyMounted: something is mounted there.
        MountError: it cannot be mounted; the message says what to do.
    """
    mount_point = await trio.to_thread.run_sync(check_mount_point, mountpoint)
    connection = await trio.to_thread.run_sync(connect, mount_point, options)

    def mount() -> Mount:
        attach(connection, mount_point)
        device = os.stat(mount_point).st_dev  # noqa: PTH116  # bytes; answered by us, after the first exchange
        set_read_ahead(device, options.read_ahead_kb)
        raise_max_background(device)
        return find_mounted(mount_point)

    await run_session(operations, connection, mount, task_status=task_status)


async def run_session(
    operations: ReadOnlyOperations,
    connection: Connection,
    mount: Callable[[], Mount],
    *,
    task_status: trio.TaskStatus[Mount] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answers a connection until it dies or we are cancelled.

    Args:
        operations: the answers.
        connection: whose descriptors this call closes.
        mount: called in a worker thread once requests are answered; attaches what is to be seen.
        task_status: gets what `mount` returns. That is what is unmounted at the end.

    Raises:
        MountError: from `mount`, or the session failed.
    """
    session = _Session(operations, connection.device_fd)
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
            operations.contents.refuse()
            with trio.CancelScope(shield=True):
                if mounted is not None:
                    await trio.to_thread.run_sync(_unmount_if_there, mounted)
                session.end()
    if session.failure is not None:
        raise session.failure


def _mount_and_let_go(mount: Callable[[], Mount], connection: Connection) -> Mount:
    """Calls `mount`, then closes the mount's descriptor: while it is open nobody can unmount."""
    try:
        return mount()
    except OSError as error:
        raise MountError(f"cannot mount: {error}") from error
    finally:
        if connection.mount_fd is not None:
            os.close(connection.mount_fd)


class _Session:
    """Answers the requests of one connection.

    The kernel withdraws a request whose process is killed before we have read it. If that happens between
    our being told of it and reading it, a blocking read of the device would wait for the next request, and
    pyfuse3 reads while it holds the interpreter's lock: nothing at all would go on. So the device does not
    block. But pyfuse3 takes that, too, for a failure, and gives up its loop: idle tasks end at once, those
    waiting for a layer when they have answered (`Contents`). Meanwhile another loop reads on.

    Attributes:
        gone: set when no more will be answered.
        failure: why, if it is an error.
    """

    def __init__(self, operations: ReadOnlyOperations, device_fd: int) -> None:
        self._operations = operations
        self._device_fd = device_fd
        self._scope = trio.CancelScope(shield=True)  # out of reach of outer cancellation
        self.gone = trio.Event()
        self.failure: MountError | None = None

    def end(self) -> None:
        """Ends answering, now; reads under way get no answer but the end of the connection."""
        self._scope.cancel()
        self._operations.contents.let_go()

    async def answer(self) -> None:
        """Answers until the connection dies or `end` is called; closes it."""
        os.set_blocking(self._device_fd, False)
        try:
            pyfuse3.init(self._operations, f"/dev/fd/{self._device_fd}", set())
        except RuntimeError as error:
            os.close(self._device_fd)
            self.failure = MountError(f"libfuse cannot begin: {error}")
            self.gone.set()
            return
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._end_when_dead)
                    nursery.start_soon(self._run_loop, nursery)
        finally:
            pyfuse3.close(unmount=False)
            self.gone.set()

    async def _run_loop(self, nursery: trio.Nursery) -> None:
        """Runs pyfuse3's loop to its end."""
        nursery.start_soon(self._prepare_successor, trio.lowlevel.current_task(), nursery)
        try:
            await pyfuse3.main(_IDLE_TASKS, _MOST_TASKS)
        except* BlockingIOError:
            _log.debug("a request was withdrawn")
        except* Exception as errors:  # noqa: BLE001  # whatever it is, the mount must end in order
            if not self._is_dead():  # a read that meets the end of the connection may fail in several ways
                _log.exception("the FUSE session failed")
                self.failure = MountError(f"the FUSE session failed: {errors.exceptions[0]!r}")
            self.end()

    async def _prepare_successor(self, loop: trio.lowlevel.Task, nursery: trio.Nursery) -> None:
        """Has the next loop begin the moment this one is given up, while it still waits for its readers.

        That moment is when the nursery that pyfuse3 opened in this loop's task is cancelled.
        """

        async def begin_another() -> None:
            try:
                await trio.sleep_forever()
            finally:
                if not self._scope.cancel_called:
                    nursery.start_soon(self._run_loop, nursery)

        for inner in loop.child_nurseries:
            inner.start_soon(begin_another)

    async def _end_when_dead(self) -> None:
        """Ends reads under way when nobody can wait for them any more; by itself pyfuse3 lets them finish.

        To learn of that alone, and not of each request, the device is polled for no event at all, by an epoll
        that trio polls in turn.
        """
        with select.epoll() as poll:
            poll.register(self._device_fd, 0)
            while not self._is_dead():
                await trio.lowlevel.wait_readable(poll.fileno())
        self.end()

    def _is_dead(self) -> bool:
        """Whether the connection has ended, which is an error condition of its device (`fuse_dev_poll`)."""
        poll = select.poll()
        poll.register(self._device_fd, 0)
        return bool(poll.poll(0))


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
