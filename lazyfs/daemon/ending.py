"""Signals that end a process in order."""

import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio


async def run_until_signal(work: Callable[[], Awaitable[None]]) -> None:
    """Run `work`; the first SIGTERM, SIGINT or SIGHUP cancels it.

    More of them, then and later, do nothing: the mount's end must not be disturbed. (A receiver of trio would
    deliver them again when it is closed.)
    """
    with trio.CancelScope() as scope:
        token = trio.lowlevel.current_trio_token()

        def end(*_: object) -> None:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(scope.cancel, idempotent=True)

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, end)
        await work()
