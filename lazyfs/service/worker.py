"""The data daemon's process, which a keeper starts: `python -m lazyfs.service.worker KEEPER ORDERS`.

Both are descriptors: a socket to the keeper, and a file that says what to do. It ends when the keeper does,
leaving everything as it is, for whoever is handed its descriptors next.

    SIGTERM   unmount everything and end
    SIGHUP    leave everything mounted and end
"""

import logging
import os
import signal
import socket
import sys
from contextlib import suppress
from functools import partial
from typing import Final

import trio

from lazyfs.config import Config
from lazyfs.exit_codes import BUG, exit_code, message_of
from lazyfs.image.tasks import open_tasks
from lazyfs.printable import LineFormatter
from lazyfs.service import descriptors
from lazyfs.service.daemon import run_service
from lazyfs.service.keeper import SIGNALS
from lazyfs.service.options import ServiceOptions, decode_options
from lazyfs.service.supervisor import Supervisor

_log = logging.getLogger(__name__)

_LONGEST: Final = 1 << 20


async def _run(options: ServiceOptions, config: Config, supervisor: Supervisor) -> None:
    leave = trio.Event()
    with trio.CancelScope() as scope:
        token = trio.lowlevel.current_trio_token()

        def handle(number: int, _frame: object) -> None:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(leave.set if number == signal.SIGHUP else scope.cancel)

        for number in SIGNALS:
            signal.signal(number, handle)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        async with open_tasks() as nursery:
            nursery.start_soon(_leave_with_keeper, supervisor, leave)
            await run_service(options, config, supervisor, leave.wait)
            nursery.cancel_scope.cancel()


async def _leave_with_keeper(supervisor: Supervisor, leave: trio.Event) -> None:
    await supervisor.wait_gone()
    leave.set()


def main() -> int:
    """Serve; the exit code is that of the error, if any."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's; the keeper says what it means
    keeper, told = (int(number) for number in sys.argv[1:3])
    options, config = decode_options(os.pread(told, _LONGEST, 0))
    for descriptor in (keeper, told):
        os.set_inheritable(descriptor, False)
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=config.log_level.upper(), handlers=[handler])
    for library in ("httpx", "httpcore"):  # they log URLs with their signatures
        logging.getLogger(library).setLevel(logging.WARNING)
    supervisor = Supervisor(socket.socket(fileno=keeper), descriptors.inherited(os.environ, os.getpid()))
    try:
        trio.run(partial(_run, options, config, supervisor))
    except Exception as error:  # noqa: BLE001  # the last line of defence: a line for people, a code for programs
        code = exit_code(error)
        _log.error("%s", message_of(error), exc_info=error if code == BUG else None)
        return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
