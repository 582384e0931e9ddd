"""The daemon's side of questions about its mount; `mount_states` has the asking side.

Whoever may open the socket may ask anything, as slowly and in as many connections as they like: nothing of
that may end the mount, or cost more than a few descriptors.
"""

import json
import logging
import socket
from collections.abc import Callable, Mapping
from typing import Any, Final

import trio

from lazyfs.errors import LazyfsError

_LINE_LIMIT: Final = 1024
_TIMEOUT_S: Final = 10.0
_CONNECTIONS: Final = 16
_PAUSE_S: Final = 0.1

_log = logging.getLogger(__name__)

Answer = Callable[[str], Mapping[str, Any]]
"""Gives the answer to a question by name."""


async def answer_questions(listening: socket.socket, answer: Answer) -> None:
    """Answer whoever connects, until cancelled."""
    listener = trio.socket.from_stdlib_socket(listening)
    turns = trio.Semaphore(_CONNECTIONS)
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
            nursery.start_soon(_take, connection, answer, turns)


async def _take(connection: trio.socket.SocketType, answer: Answer, turns: trio.Semaphore) -> None:
    try:
        with connection, trio.move_on_after(_TIMEOUT_S):
            await _answer(trio.SocketStream(connection), answer)
    finally:
        turns.release()


async def _answer(stream: trio.SocketStream, answer: Answer) -> None:
    line = b""
    try:
        while not line.endswith(b"\n"):
            more = await stream.receive_some(_LINE_LIMIT)
            line += more
            if not more or len(line) > _LINE_LIMIT:
                return
        reply = answer(str(json.loads(line)["ask"]))
        await stream.send_all(json.dumps(reply).encode() + b"\n")
    except (trio.BrokenResourceError, ValueError, KeyError, TypeError, RecursionError, LazyfsError):
        return  # whoever asked has gone, or asks nonsense: closing tells enough
