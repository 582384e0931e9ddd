"""A session of pyfuse3, which is a global of its module: one per process at a time."""

import logging
import os
import select
from typing import Final

import pyfuse3
import trio

from lazyfs.errors import MountError
from lazyfs.mount.errors import CONNECTION_ENDED
from lazyfs.mount.handlers import ReadOnlyOperations

# pyfuse3 runs a task per request under way. A read that waits for the network holds its task, so there must
# always be one more for the look-up that needs no network; idle ones are kept down to the first number.
_IDLE_TASKS: Final = 8
_MOST_TASKS: Final = 1000

_log = logging.getLogger(__name__)


class PyfuseSession:
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

    def __init__(self, device_fd: int, operations: ReadOnlyOperations) -> None:
        """Nothing is read yet.

        Args:
            device_fd: an open /dev/fuse that is mounted. It stays the caller's.
            operations: what is answered.
        """
        self._operations = operations
        self._device_fd = device_fd
        self._scope = trio.CancelScope(shield=True)  # out of reach of outer cancellation
        self.gone = trio.Event()
        self.failure: MountError | None = None

    def refuse(self) -> None:
        """Answers every read that has to wait with ENOTCONN from now on, those under way at once."""
        self._operations.contents.refuse()

    def end(self) -> None:
        """Ends answering, now; reads under way get no answer but the end of the connection."""
        self._scope.cancel()
        self._operations.contents.let_go()

    async def answer(self) -> None:
        """Answers until the connection dies or `end` is called, whoever cancels."""
        os.set_blocking(self._device_fd, False)
        own_fd = os.dup(self._device_fd)  # libfuse closes it
        try:
            pyfuse3.init(self._operations, f"/dev/fd/{own_fd}", set())
        except RuntimeError as error:
            os.close(own_fd)
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
            # A read that meets the end of the connection fails in several ways, some before polls tell of it.
            if not (self._is_dead() or _all_met_the_end(errors)):
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


def _all_met_the_end(errors: BaseExceptionGroup[BaseException]) -> bool:
    return all(
        _all_met_the_end(error)
        if isinstance(error, BaseExceptionGroup)
        else isinstance(error, OSError) and error.errno in CONNECTION_ENDED
        for error in errors.exceptions
    )
