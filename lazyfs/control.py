"""The daemon's side of questions about its mount; `mount_states` has the asking side.

Whoever may open the socket may ask anything, as slowly and in as many connections as they like: nothing of
that may end the mount, or cost more than a few descriptors.
"""

import json
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final

import trio

from lazyfs.acceptor import accept_connections
from lazyfs.errors import LazyfsError

_log = logging.getLogger(__name__)

_LINE_LIMIT: Final = 1024
_TIMEOUT_S: Final = 10.0
_CONNECTIONS: Final = 16
_NONSENSE: Final = (ValueError, KeyError, TypeError, RecursionError, LazyfsError)

Answer = Callable[[str], Awaitable[Mapping[str, Any]]]
"""Gives the answer to a question by name."""


async def answer_questions(listening: socket.socket, answer: Answer) -> None:
    """Answer whoever connects, until cancelled."""
    listener = trio.socket.from_stdlib_socket(listening)
    await accept_connections(listener, _CONNECTIONS, partial(_converse, answer))


async def _converse(answer: Answer, stream: trio.SocketStream) -> None:
    line = b""
    with trio.move_on_after(_TIMEOUT_S), suppress(*_NONSENSE):  # closing tells enough
        while not line.endswith(b"\n"):
            more = await stream.receive_some(_LINE_LIMIT)
            line += more
            if not more or len(line) > _LINE_LIMIT:
                return
        await stream.send_all(await _reply(answer, str(json.loads(line)["ask"])))


async def _reply(answer: Answer, question: str) -> bytes:
    """The line that answers a question; none where a bug is in the way."""
    try:
        facts = await answer(question)
        return await trio.to_thread.run_sync(_line_of, facts)  # a trace may be long
    except _NONSENSE:
        raise
    except Exception:  # noqa: BLE001  # it fails one answer, not the mount
        _log.exception("a bug in the answer to %s", question)
        return b""


def _line_of(facts: Mapping[str, Any]) -> bytes:
    return json.dumps(facts).encode() + b"\n"
