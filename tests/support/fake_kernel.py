"""The kernel's side of /dev/fuse, by hand, over a socket (include/uapi/linux/fuse.h)."""

import os
import socket
import struct
from typing import NamedTuple

import trio

HEADER = struct.Struct("<IIQQIIIHH")  # len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding
REPLY = struct.Struct("<IiQ")  # len, error, unique
LOOKUP, READ, INIT = 1, 15, 26
DO_READDIRPLUS = 1 << 13
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

    def send(self, opcode: int, node: int, body: bytes, *, withdraw: bool = False) -> int:
        """Its unique number."""
        self._unique += 1
        header = HEADER.pack(HEADER.size + len(body), opcode, self._unique, node, 0, 0, 1, 0, 0)
        self._withdraw = withdraw
        self._socket.send(header + body)
        return self._unique

    def after_io_wait(self, timeout: float) -> None:
        if self._withdraw:
            self._withdraw = False
            os.read(self._spy, LIMIT)

    async def reply(self) -> Reply:
        await trio.lowlevel.wait_readable(self._socket)
        message = self._socket.recv(LIMIT)
        size, error, unique = REPLY.unpack_from(message)
        assert size == len(message)
        return Reply(unique, -error, message[REPLY.size :])

    def init(self) -> int:
        return self.send(INIT, 0, struct.pack("<IIII", 7, 31, 1 << 17, DO_READDIRPLUS))

    def look_up(self, name: bytes, *, withdraw: bool = False) -> int:
        return self.send(LOOKUP, 1, name + b"\0", withdraw=withdraw)

    def read(self, node: int, size: int) -> int:
        return self.send(READ, node, struct.pack("<QQIIQII", node, 0, size, 0, 0, 0, 0))
