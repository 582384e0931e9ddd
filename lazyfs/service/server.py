"""Answers questions on a unix socket, each by a connection of its own.

Only root and our own user are answered. Whoever asks may be slow, or talk nonsense: that costs a descriptor
for some seconds. An answer may take as long as what was ordered takes; who goes away before does not end it.
"""

import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from indexer.errors import IndexerError
from lazyfs.acceptor import accept_connections
from lazyfs.errors import BadReference, LazyfsError, MountError
from lazyfs.exit_codes import BUG, exit_code, message_of
from lazyfs.printable import one_line
from lazyfs.service.protocol import MAX_LINE, decoded, encoded
from lazyfs.service.survival.supervisor import Supervisor
from lazyfs.unix_sockets import is_ours

_log = logging.getLogger(__name__)

_KEPT_AS: Final = "questions"
_QUESTION_S: Final = 10.0
_ANSWER_S: Final = 10.0
_CONNECTIONS: Final = 512
_LONGEST_COMPLAINT: Final = 2000

Answer = Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]]
"""Gives the answer to a question; may raise IndexerError or LazyfsError."""


def listen(path: Path) -> socket.socket:
    """A listening socket at `path`, which nobody else may open, in place of what was there.

    Raises:
        MountError: it cannot be made.
    """
    made = _made(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        made.unlink(missing_ok=True)
        listener.bind(os.fspath(made))
        made.chmod(0o600)
        listener.listen(_CONNECTIONS)
        made.rename(path)  # whoever finds it there can connect
    except OSError as error:
        listener.close()
        raise MountError(f"cannot listen at {path}: {error.strerror or error}") from error
    return listener


def is_at(listener: socket.socket, path: Path) -> bool:
    """Whether a socket that `listen` made is the one for `path`, and that is still there."""
    return listener.getsockname() == os.fspath(_made(path)) and path.is_socket()


def _made(path: Path) -> Path:
    return path.with_name(f"{path.name}.new")


@contextmanager
def listening(path: Path, supervisor: Supervisor) -> Iterator[tuple[socket.socket, bool]]:
    """A socket that listens at `path`: that of the daemon before us, where questions may wait, or a new one.

    Gives also whether it is the one from before, which is kept for the daemon after us already.

    Raises:
        MountError: there can be none.
    """
    kept = supervisor.take(_KEPT_AS)
    listener = socket.socket(fileno=kept) if kept is not None else None
    if listener is not None and not is_at(listener, path):
        listener.close()
        listener = None
    is_kept = listener is not None
    if listener is None:
        listener = listen(path)
    with listener:
        yield listener, is_kept


def keep(listener: socket.socket, supervisor: Supervisor) -> None:
    """Have a socket kept for the daemon after us."""
    supervisor.store(_KEPT_AS, listener.fileno())


async def answer_questions(listening: socket.socket, answer: Answer) -> None:
    """Answer whoever may ask, until cancelled."""
    listener = trio.socket.from_stdlib_socket(listening)
    await accept_connections(listener, _CONNECTIONS, partial(_converse, answer))


async def _converse(answer: Answer, stream: trio.SocketStream) -> None:
    if not is_ours(stream.socket):
        return
    with trio.move_on_after(_QUESTION_S) as scope:
        line = await _line(stream)
    if scope.cancelled_caught or line is None:
        return
    reply = await _reply(line, answer)
    with trio.move_on_after(_ANSWER_S):
        await stream.send_all(encoded(reply))


async def _line(stream: trio.SocketStream) -> bytes | None:
    """All up to the end of the first line; None if there is no end of it."""
    pieces: list[bytes] = []
    size = 0
    while not pieces or not pieces[-1].endswith(b"\n"):
        pieces.append(await stream.receive_some(1 << 16))
        size += len(pieces[-1])
        if not pieces[-1] or size > MAX_LINE:
            return None
    return b"".join(pieces)


async def _reply(line: bytes, answer: Answer) -> Mapping[str, Any]:
    try:
        return await answer(decoded(line))
    except (IndexerError, LazyfsError) as error:
        level = logging.DEBUG if isinstance(error, BadReference) else logging.WARNING
        _log.log(level, "%s", message_of(error))
        return {"error": one_line(message_of(error))[:_LONGEST_COMPLAINT], "code": exit_code(error)}
    except Exception as error:  # noqa: BLE001  # who asks is told, and the others are answered on
        _log.exception("a bug")
        return {"error": f"a bug: {type(error).__name__}; the daemon's log has its trace", "code": BUG}
