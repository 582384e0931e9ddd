"""The data daemon's process, which a keeper starts: `python -m lazyfs.service.worker KEEPER ORDERS`.

Both are descriptors: a socket to the keeper, and a file that says what to do. When the keeper dies it goes on
until there is another, hands its descriptors over, and ends, leaving everything as it is.

    SIGTERM   unmount everything and end
    SIGHUP    leave everything mounted and end
"""

import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

import trio

from lazyfs.allocator import keep_freed_memory
from lazyfs.config import Config
from lazyfs.exit_codes import BUG, exit_code, message_of
from lazyfs.image.tasks import open_tasks
from lazyfs.log import start_log
from lazyfs.printable import one_line
from lazyfs.service.daemon import run_service
from lazyfs.service.options import ServiceOptions, decode_options
from lazyfs.service.survival import descriptors, handover
from lazyfs.service.survival.keeper import SIGNALS
from lazyfs.service.survival.supervisor import Supervisor

_log = logging.getLogger("lazyfs.service.worker")  # also as a program

_LOOK_EVERY_S: Final = 1.0
_LONGEST: Final = 1 << 20


async def _run(options: ServiceOptions, config: Config, supervisor: Supervisor) -> None:
    async with open_tasks() as nursery:
        nursery.start_soon(_beat, supervisor, descriptors.beat_s(options.hung_after_s))
        await _run_until_told(options, config, supervisor)
        nursery.cancel_scope.cancel()


async def _beat(supervisor: Supervisor, every_s: float) -> None:
    """Show the keeper that our event loop turns, to the very end."""
    while True:
        supervisor.alive()
        await trio.sleep(every_s)


async def _run_until_told(options: ServiceOptions, config: Config, supervisor: Supervisor) -> None:
    leave = trio.Event()
    with trio.CancelScope() as scope:
        token = trio.lowlevel.current_trio_token()

        def handle(number: int, _frame: object) -> None:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(leave.set if number == signal.SIGHUP else scope.cancel)

        for number in SIGNALS:
            signal.signal(number, handle)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

        async def wait_leave(is_needed: Callable[[], bool]) -> None:
            async with open_tasks() as nursery:
                nursery.start_soon(_leave_when_orphaned, options.root, supervisor, leave, is_needed)
                await leave.wait()
                nursery.cancel_scope.cancel()

        await run_service(options, config, supervisor, wait_leave)


async def _leave_when_orphaned(
    root: Path, supervisor: Supervisor, leave: trio.Event, is_needed: Callable[[], bool]
) -> None:
    """Go on without a keeper until another one takes over, or nothing of ours is mounted or in use."""
    await supervisor.wait_gone()
    _log.warning("the keeper is dead; everything goes on until another is started")
    async with open_tasks() as nursery:
        nursery.start_soon(_hand_over, root, supervisor, leave)
        while is_needed():  # noqa: ASYNC110  # orphans are rare, and so are their looks
            await trio.sleep(_LOOK_EVERY_S)
        leave.set()
        nursery.cancel_scope.cancel()


async def _hand_over(root: Path, supervisor: Supervisor, leave: trio.Event) -> None:
    try:
        with handover.offer(root) as listening:
            listener = trio.socket.from_stdlib_socket(listening)
            handed = False
            while not handed:
                connection, _ = await listener.accept()
                with socket.socket(fileno=connection.detach()) as keeper:
                    handed = handover.hand_over(keeper, supervisor.stored)
    except OSError as error:
        _log.error("nobody can take over: %s", error)
    else:
        leave.set()


def main() -> int:
    """Serve; the exit code is that of the error, if any."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's; the keeper says what it means
    keeper, told = (int(number) for number in sys.argv[1:3])
    options, config = decode_options(os.pread(told, _LONGEST, 0))
    for descriptor in (keeper, told):
        os.set_inheritable(descriptor, False)
    keep_freed_memory()
    start_log(config.log_level)
    supervisor = Supervisor(socket.socket(fileno=keeper), descriptors.inherited(os.environ, os.getpid()))
    try:
        trio.run(partial(_run, options, config, supervisor))
    except Exception as error:  # noqa: BLE001  # the last line of defence: a line for people, a code for programs
        code = exit_code(error)
        if code == BUG:
            _log.exception("a bug")
        else:
            sys.stderr.write(f"lazyfs: {one_line(message_of(error))}\n")
        return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
