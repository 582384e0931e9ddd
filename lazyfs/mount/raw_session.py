"""Our own side of /dev/fuse: reads requests, answers them, and goes on where another process has stopped.

    async with trio.open_nursery() as nursery:
        session = RawSession(device_fd, answers)
        nursery.start_soon(session.answer)
        ...
        session.end()

The device does not block: the kernel withdraws a request whose process is killed before we have read it, and
a read that came too late would wait for the next one. What can be answered at once is, on trio's thread;
anything else gets a task of its own.

Who else holds the descriptor keeps the connection alive when our process dies: requests wait, and those that
we had read and not answered are handed out again when a successor asks for them (FUSE_NOTIFY_RESEND, Linux
6.9). On an older kernel their readers wait until the connection is aborted.
"""

import errno
import logging
import os
from time import perf_counter
from typing import Final

import trio
from msgspec import Struct

from lazyfs.errors import MountError
from lazyfs.mount import wire
from lazyfs.mount.answers import Answers, Data, Later, Negotiated
from lazyfs.mount.errors import CONNECTION_ENDED, FailureLog, Refused
from lazyfs.mount.requesters import is_killed
from lazyfs.mount.wire import Header, NotifyCode, Opcode, WireError

_BUFFER_SIZE: Final = 2 * wire.MIN_READ_BUFFER
_BURST: Final = 64  # requests that are answered before other tasks get their turn
# For how long the next request is looked for before we sleep. Whoever got an answer mostly asks again, within
# less than it costs to be woken: an answer takes 10 us, the event loop and an idle processor take 40.
_LINGER_S: Final = 50e-6
_LOOK_AGAIN_S: Final = 0.25

_log = logging.getLogger(__name__)


class _Waiting(Struct):
    """A request under way.

    Attributes:
        header: of it.
        doing: what it is, in words.
        scope: its task.
        watched: whether its reader got a signal.
    """

    header: Header
    doing: str
    scope: trio.CancelScope
    watched: bool = False


class RawSession:
    """Answers the requests of one connection.

    Attributes:
        gone: set when no more will be answered.
        failure: why, if it is an error.
        initialised: set once kernel and server have settled how they speak.
    """

    def __init__(self, device_fd: int, answers: Answers, predecessor: Negotiated | None = None) -> None:
        """Nothing is read yet.

        Args:
            device_fd: an open /dev/fuse that is mounted. It stays the caller's.
            answers: what is answered.
            predecessor: what `negotiated` was in the process that answered before.
        """
        self._device_fd = device_fd
        self._answers = answers
        self._answers.negotiated = predecessor
        self._resend = predecessor is not None
        self._buffer = memoryview(bytearray(_BUFFER_SIZE))
        self._failures = FailureLog(_log)
        self._waiting: dict[int, _Waiting] = {}
        self._scope = trio.CancelScope(shield=True)  # out of reach of outer cancellation
        self.gone = trio.Event()
        self.failure: MountError | None = None
        self.initialised = trio.Event()

    def __repr__(self) -> str:
        return f"<RawSession {self._answers.negotiated}, {len(self._waiting)} requests under way>"

    @property
    def negotiated(self) -> Negotiated | None:
        """What a successor needs to know; None until `initialised`."""
        return self._answers.negotiated

    def refuse(self) -> None:
        """Answers every read that has to wait with ENOTCONN from now on, those under way at once."""
        self._answers.contents.refuse()

    def end(self) -> None:
        """Ends answering, now; what is under way gets no answer from us."""
        self._scope.cancel()

    async def answer(self) -> None:
        """Answers until the connection dies or `end` is called, whoever cancels."""
        os.set_blocking(self._device_fd, False)
        if self._resend:
            self.initialised.set()
            self._ask_again()
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    await self._answer_all(nursery)
                    nursery.cancel_scope.cancel()
        finally:
            self.gone.set()

    async def _answer_all(self, nursery: trio.Nursery) -> None:
        try:
            while self._answer_burst(nursery):
                await trio.lowlevel.wait_readable(self._device_fd)
        except Exception as error:  # noqa: BLE001  # whatever it is, the mount must end in order
            _log.exception("the FUSE session failed")
            self.failure = MountError(f"the FUSE session failed: {error}")

    def _ask_again(self) -> None:
        """Has the kernel hand out again what was read by a predecessor and not answered."""
        try:
            os.write(self._device_fd, wire.encode_notification(NotifyCode.RESEND))
        except OSError as error:
            _log.warning("this kernel does not repeat requests, and whoever waits for them hangs: %s", error)

    def _answer_burst(self, nursery: trio.Nursery) -> bool:
        """Answers what is there, or comes at once; False if nothing will ever come again."""
        answered = 0
        under_way = len(self._waiting)
        linger_end = perf_counter() + _LINGER_S
        while answered < _BURST:
            try:
                size = os.readv(self._device_fd, [self._buffer])
            except BlockingIOError:
                # Tasks that are to begin go first.
                if len(self._waiting) > under_way or perf_counter() > linger_end:
                    break
                os.sched_yield()
            except OSError as error:
                if error.errno in CONNECTION_ENDED:
                    return False
                if error.errno != errno.ENOENT:  # withdrawn while it was read
                    raise
            else:
                if not size:
                    return False
                self._answer_message(self._buffer[:size], nursery)
                answered += 1
                linger_end = perf_counter() + _LINGER_S
        return True

    def _answer_message(self, message: memoryview, nursery: trio.Nursery) -> None:
        try:
            header = wire.decode_header(message)
        except WireError:
            _log.exception("the kernel sent what cannot be read")
            return
        body = message[wire.IN_HEADER.size :]
        try:
            if header.opcode == Opcode.INTERRUPT:
                self._note_signal(body, nursery)
                return
            answer = self._answers.answer(header, body)
        except Exception as error:  # noqa: BLE001  # whatever goes wrong is an answer
            self._reply_error(header.unique, wire.describe(header, body), error)
            return
        if isinstance(answer, (bytes, memoryview)):
            self._reply(header.unique, answer)
            if header.opcode == Opcode.INIT and self.negotiated is not None:
                self.initialised.set()
        elif answer is not None:
            waiting = _Waiting(header, wire.describe(header, body), trio.CancelScope())
            self._waiting[header.unique] = waiting
            nursery.start_soon(self._answer_later, waiting, answer)

    async def _answer_later(self, waiting: _Waiting, answer: Later) -> None:
        unique = waiting.header.unique
        try:
            with waiting.scope:
                self._reply(unique, await answer())
        except Exception as error:  # noqa: BLE001  # whatever goes wrong is an answer
            self._reply_error(unique, waiting.doing, error)
        finally:
            del self._waiting[unique]
        if waiting.scope.cancelled_caught:
            self._send(unique, wire.encode_error(unique, errno.EINTR))

    def _note_signal(self, body: memoryview, nursery: trio.Nursery) -> None:
        """Looks from now on whether a reader that got a signal is to die of it.

        The kernel sends INTERRUPT for any signal, once. To answer EINTR to all of them would break programs
        that read a file and handle signals, and those that touch a mapped one.
        """
        waiting = self._waiting.get(wire.decode_interrupt(body))
        if waiting is not None and not waiting.watched:
            waiting.watched = True
            nursery.start_soon(self._end_when_killed, waiting)

    async def _end_when_killed(self, waiting: _Waiting) -> None:
        while self._waiting.get(waiting.header.unique) is waiting:
            if is_killed(waiting.header.pid):
                waiting.scope.cancel()
                return
            await trio.sleep(_LOOK_AGAIN_S)

    def _reply(self, unique: int, data: Data) -> None:
        self._send(unique, wire.encode_reply(unique, len(data)), data)

    def _reply_error(self, unique: int, doing: str, error: Exception) -> None:
        number = error.errno if isinstance(error, Refused) else self._failures.errno_for(error, doing)
        self._send(unique, wire.encode_error(unique, number))

    def _send(self, unique: int, *parts: Data) -> None:
        """Writes an answer. Nobody may want it any more (ENOENT), or the connection may be dead."""
        try:
            os.writev(self._device_fd, parts)
        except OSError as error:
            if error.errno in CONNECTION_ENDED or error.errno == errno.ENOENT:
                return
            _log.exception("the kernel does not take an answer of %d bytes", sum(map(len, parts)))
            if len(parts) > 1:
                self._send(unique, wire.encode_error(unique, errno.EIO))
