"""The kernel's side of /dev/fuse, by hand, over a socket."""

import ctypes
import os
import socket
from typing import NamedTuple

import trio

from lazyfs.mount.wire import Opcode
from tests.support import fuse_protocol as c

DO_READDIRPLUS = 1 << 13  # pyfuse3 wants it
LIMIT = 1 << 21


class Reply(NamedTuple):
    unique: int
    error: int
    body: bytes


class FakeKernel(trio.abc.Instrument):
    """Sends requests to the descriptor `device_fd`, and receives what is answered.

    As an instrument it withdraws the request sent last, if told to, at the worst moment: when the event loop
    knows of it, and has not read it.
    """

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        self._spy = os.dup(theirs.fileno())
        self.device_fd = theirs.detach()
        self._withdraw = False
        self._unique = 0

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            self._socket.close()
            os.close(self._spy)

    def send(self, opcode: int, node: int, body: bytes = b"", *, withdraw: bool = False, pid: int = 1) -> int:
        """Its unique number."""
        self._unique += 2
        self._withdraw = withdraw
        self.send_bytes(c.message(opcode, self._unique, node, body, pid=pid))
        return self._unique

    def send_bytes(self, message: bytes) -> None:
        self._socket.send(message)

    def after_io_wait(self, timeout: float) -> None:
        if self._withdraw:
            self._withdraw = False
            os.read(self._spy, LIMIT)

    async def reply(self) -> Reply:
        await trio.lowlevel.wait_readable(self._socket)
        message = self._socket.recv(LIMIT)
        head = c.OutHeader.from_buffer_copy(message)
        assert head.len == len(message)
        return Reply(head.unique, -head.error, message[ctypes.sizeof(c.OutHeader) :])

    def is_silent(self) -> bool:
        """Whether nothing has been answered that was not received yet."""
        try:
            self._socket.recv(LIMIT, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        return False

    def init(self) -> int:
        return self.send(Opcode.INIT, 0, c.init_body(minor=31, flags=DO_READDIRPLUS))

    def look_up(self, name: bytes, *, withdraw: bool = False) -> int:
        return self.send(Opcode.LOOKUP, 1, name + b"\0", withdraw=withdraw)

    def read(self, node: int, size: int, *, pid: int = 1) -> int:
        return self.send(Opcode.READ, node, bytes(c.ReadIn(node, 0, size)), pid=pid)
