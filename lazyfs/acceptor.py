"""Takes connections on a socket, so many at once and no more."""

import logging
from collections.abc import Awaitable, Callable
from typing import Final, NoReturn

import trio

_log = logging.getLogger(__name__)

_PAUSE_S: Final = 0.1

Converse = Callable[[trio.SocketStream], Awaitable[None]]
"""Talks with whoever connected; may let what an end of the connection raises pass."""


async def accept_connections(listener: trio.socket.SocketType, most: int, converse: Converse) -> NoReturn:
    """Converse with whoever connects, until cancelled.

    Args:
        listener: a listening socket.
        most: how many at once; others wait in the kernel.
        converse: called for each connection, which is closed afterwards.
    """
    turns = trio.Semaphore(most)
    async with trio.open_nursery() as nursery:
        while True:
            await turns.acquire()
            try:
                connection, _ = await listener.accept()
            except OSError as error:  # out of descriptors, or they have gone already: accept(2)
                turns.release()
                _log.warning("cannot take a question: %s", error)
                await trio.sleep(_PAUSE_S)
                continue
            nursery.start_soon(_converse, connection, turns, converse)


async def _converse(connection: trio.socket.SocketType, turns: trio.Semaphore, converse: Converse) -> None:
    try:
        with connection:
            await converse(trio.SocketStream(connection))
    except (trio.BrokenResourceError, OSError):
        return  # whoever asked has gone
    finally:
        turns.release()
