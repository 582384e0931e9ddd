"""The daemon's side of questions about its mount; `mount_states` has the asking side."""

import json
import socket
from collections.abc import Callable, Mapping
from typing import Any, Final

import trio

from lazyfs.errors import LazyfsError

_LINE_LIMIT: Final = 64 << 10
_TIMEOUT_S: Final = 10.0

Answer = Callable[[str], Mapping[str, Any]]
"""Gives the answer to a question by name."""


async def answer_questions(listening: socket.socket, answer: Answer) -> None:
    """Answer whoever connects, until cancelled."""
    listener = trio.socket.from_stdlib_socket(listening)
    async with trio.open_nursery() as nursery:
        while True:
            connection, _ = await listener.accept()
            nursery.start_soon(_answer, connection, answer)


async def _answer(connection: trio.socket.SocketType, answer: Answer) -> None:
    with connection, trio.move_on_after(_TIMEOUT_S):
        stream = trio.SocketStream(connection)
        line = b""
        try:
            while not line.endswith(b"\n") and len(line) < _LINE_LIMIT:
                more = await stream.receive_some(4096)
                if not more:
                    return
                line += more
            reply = answer(str(json.loads(line)["ask"]))
            await stream.send_all(json.dumps(reply).encode() + b"\n")
        except (trio.BrokenResourceError, ValueError, KeyError, TypeError, LazyfsError):
            return  # whoever asked has gone, or asks nonsense: closing tells enough
