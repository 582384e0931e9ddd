"""The messages of /dev/fuse as C lays them out (include/uapi/linux/fuse.h), and a client that asks."""

import ctypes
import os
import struct
from collections.abc import Iterator
from ctypes import c_int32, c_int64, c_uint16, c_uint32, c_uint64
from typing import Any, NamedTuple

from lazyfs.mount import wire
from lazyfs.mount.answers import Answers
from lazyfs.mount.wire import Opcode

Fields = list[tuple[str, Any]]


class InHeader(ctypes.Structure):
    _fields_ = [
        *[("len", c_uint32), ("opcode", c_uint32), ("unique", c_uint64), ("nodeid", c_uint64)],
        *[("uid", c_uint32), ("gid", c_uint32), ("pid", c_uint32)],
        *[("total_extlen", c_uint16), ("padding", c_uint16)],
    ]


class OutHeader(ctypes.Structure):
    _fields_ = [("len", c_uint32), ("error", c_int32), ("unique", c_uint64)]


class InitIn(ctypes.Structure):
    _fields_ = [
        *[("major", c_uint32), ("minor", c_uint32), ("max_readahead", c_uint32), ("flags", c_uint32)],
        *[("flags2", c_uint32), ("unused", c_uint32 * 11)],
    ]


class InitOut(ctypes.Structure):
    _fields_ = [
        *[("major", c_uint32), ("minor", c_uint32), ("max_readahead", c_uint32), ("flags", c_uint32)],
        *[("max_background", c_uint16), ("congestion_threshold", c_uint16), ("max_write", c_uint32)],
        *[("time_gran", c_uint32), ("max_pages", c_uint16), ("map_alignment", c_uint16)],
        *[("flags2", c_uint32), ("unused", c_uint32 * 7)],
    ]


class Attr(ctypes.Structure):
    _fields_ = [
        *[("ino", c_uint64), ("size", c_uint64), ("blocks", c_uint64)],
        *[("atime", c_int64), ("mtime", c_int64), ("ctime", c_int64)],
        *[("atimensec", c_uint32), ("mtimensec", c_uint32), ("ctimensec", c_uint32)],
        *[("mode", c_uint32), ("nlink", c_uint32), ("uid", c_uint32), ("gid", c_uint32), ("rdev", c_uint32)],
        *[("blksize", c_uint32), ("flags", c_uint32)],
    ]

    @property
    def mtime_ns(self) -> int:
        assert (self.mtime, self.mtimensec) == (self.atime, self.atimensec) == (self.ctime, self.ctimensec)
        return self.mtime * 10**9 + self.mtimensec


class EntryOut(ctypes.Structure):
    _fields_ = [
        *[("nodeid", c_uint64), ("generation", c_uint64)],
        *[("entry_valid", c_uint64), ("attr_valid", c_uint64)],
        *[("entry_valid_nsec", c_uint32), ("attr_valid_nsec", c_uint32), ("attr", Attr)],
    ]


class AttrOut(ctypes.Structure):
    _fields_ = [("attr_valid", c_uint64), ("attr_valid_nsec", c_uint32), ("dummy", c_uint32), ("attr", Attr)]


class Dirent(ctypes.Structure):
    _fields_ = [("ino", c_uint64), ("off", c_uint64), ("namelen", c_uint32), ("type", c_uint32)]


class Direntplus(ctypes.Structure):
    _fields_ = [("entry_out", EntryOut), ("dirent", Dirent)]


class ReadIn(ctypes.Structure):
    _fields_ = [
        *[("fh", c_uint64), ("offset", c_uint64), ("size", c_uint32), ("read_flags", c_uint32)],
        *[("lock_owner", c_uint64), ("flags", c_uint32), ("padding", c_uint32)],
    ]


class OpenIn(ctypes.Structure):
    _fields_ = [("flags", c_uint32), ("open_flags", c_uint32)]


class OpenOut(ctypes.Structure):
    _fields_ = [("fh", c_uint64), ("open_flags", c_uint32), ("padding", c_uint32)]


class ReleaseIn(ctypes.Structure):
    _fields_ = [("fh", c_uint64), ("flags", c_uint32), ("release_flags", c_uint32), ("lock_owner", c_uint64)]


class GetxattrIn(ctypes.Structure):
    _fields_ = [("size", c_uint32), ("padding", c_uint32)]


class GetxattrOut(ctypes.Structure):
    _fields_ = [("size", c_uint32), ("padding", c_uint32)]


class InterruptIn(ctypes.Structure):
    _fields_ = [("unique", c_uint64)]


class Kstatfs(ctypes.Structure):
    _fields_ = [
        *[("blocks", c_uint64), ("bfree", c_uint64), ("bavail", c_uint64)],
        *[("files", c_uint64), ("ffree", c_uint64), ("bsize", c_uint32), ("namelen", c_uint32)],
        *[("frsize", c_uint32), ("padding", c_uint32), ("spare", c_uint32 * 6)],
    ]


NO_OPEN_SUPPORT, NO_OPENDIR_SUPPORT = 1 << 17, 1 << 24


def init_body(*, major: int = 7, minor: int = 45, flags: int = NO_OPEN_SUPPORT | NO_OPENDIR_SUPPORT) -> bytes:
    """What a kernel with these abilities says first."""
    flags |= 1 << 30  # INIT_EXT
    return bytes(InitIn(major, minor, 1 << 17, flags & 0xFFFFFFFF, flags >> 32))


class Listed(NamedTuple):
    """An entry of a listing."""

    name: bytes
    dirent: Dirent
    entry: EntryOut | None


def parse_listing(data: bytes, *, plus: bool) -> Iterator[Listed]:
    """The entries, as the kernel takes them apart (fs/fuse/readdir.c)."""
    layout = Direntplus if plus else Dirent
    while data:
        head = layout.from_buffer_copy(data)
        dirent = head.dirent if plus else head
        end = ctypes.sizeof(layout) + dirent.namelen
        yield Listed(data[ctypes.sizeof(layout) : end], dirent, head.entry_out if plus else None)
        end += -end % 8
        assert len(data) >= end
        data = data[end:]


class Client:
    """Asks a file system as the kernel does, without one."""

    def __init__(self, answers: Answers, **offer: int) -> None:
        self.answers = answers
        self._unique = 0
        self.settled = InitOut.from_buffer_copy(self.ask_now(Opcode.INIT, 0, init_body(**offer)))

    def ask_now(self, opcode: int, nodeid: int, body: bytes = b"") -> Any:
        """What comes back at once."""
        self._unique += 2
        header = wire.Header(opcode, self._unique, nodeid, os.getpid())
        return self.answers.answer(header, memoryview(body))

    async def ask(self, opcode: int, nodeid: int, body: bytes = b"") -> bytes:
        """What comes back."""
        answer = self.ask_now(opcode, nodeid, body)
        return bytes(answer if isinstance(answer, (bytes, memoryview)) else await answer())

    def look_up(self, parent: int, name: bytes) -> EntryOut:
        return EntryOut.from_buffer_copy(self.ask_now(Opcode.LOOKUP, parent, name + b"\0"))

    def attributes(self, nodeid: int) -> Attr:
        answer = AttrOut.from_buffer_copy(self.ask_now(Opcode.GETATTR, nodeid, bytes(16)))
        assert answer.attr_valid == 365 * 86400
        return answer.attr

    async def read(self, nodeid: int, offset: int, size: int, handle: int = 0) -> bytes:
        return await self.ask(Opcode.READ, nodeid, read_body(offset, size, handle))

    def open(self, nodeid: int) -> OpenOut:
        return OpenOut.from_buffer_copy(self.ask_now(Opcode.OPEN, nodeid, bytes(OpenIn())))

    def release(self, nodeid: int, handle: int) -> None:
        self.ask_now(Opcode.RELEASE, nodeid, bytes(ReleaseIn(handle)))

    def list(self, nodeid: int, offset: int, size: int, *, plus: bool) -> list[Listed]:
        opcode = Opcode.READDIRPLUS if plus else Opcode.READDIR
        data = self.ask_now(opcode, nodeid, read_body(offset, size))
        assert len(data) <= size
        return list(parse_listing(data, plus=plus))

    def getxattr(self, nodeid: int, name: bytes, size: int = 65536) -> bytes:
        return self.ask_now(Opcode.GETXATTR, nodeid, bytes(GetxattrIn(size)) + name + b"\0")

    def listxattr(self, nodeid: int, size: int = 65536) -> bytes:
        return self.ask_now(Opcode.LISTXATTR, nodeid, bytes(GetxattrIn(size)))


def read_body(offset: int, size: int, handle: int = 0) -> bytes:
    """Of READ, READDIR and READDIRPLUS."""
    return bytes(ReadIn(handle, offset, size))


def message(opcode: int, unique: int, nodeid: int, body: bytes = b"", *, pid: int = 1) -> bytes:
    """A whole request."""
    return bytes(InHeader(ctypes.sizeof(InHeader) + len(body), opcode, unique, nodeid, 0, 0, pid)) + body


assert struct.calcsize("P") == 8  # layouts are those of 64 bits everywhere
