"""From a request of the kernel to its answer, without a device.

A request whose answer is on this machine is answered at once; one that has to wait gives `Later`, to be
awaited by whoever has a task for it. What no file system of ours has a say in is settled here: every change
is refused, and what is not known at all gets ENOSYS, which the kernel remembers.
"""

import errno
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from msgspec import Struct

from lazyfs.mount import wire, wire_init
from lazyfs.mount.contents import Contents
from lazyfs.mount.errors import Refused
from lazyfs.mount.tuning import MAX_BACKGROUND
from lazyfs.mount.wire import Header, Opcode, ReadIn
from lazyfs.mount.wire_init import InitFlag, InitOut

Data = bytes | memoryview
Later = Callable[[], Awaitable[Data]]
Answer = Data | Later | None
"""What goes back: bytes, bytes that have to be waited for, or nothing at all."""

# From the nodeid and the body of a request, which is not needed any more afterwards.
Handler = Callable[[int, memoryview], Answer]

MAX_PAGES: Final = 256
"""The pages of a read at most, which the kernel's own limit (fs.fuse.max_pages_limit) may lower."""

_CHANGES: Final = (
    *(Opcode.SETATTR, Opcode.SYMLINK, Opcode.MKNOD, Opcode.MKDIR, Opcode.UNLINK, Opcode.RMDIR, Opcode.RENAME),
    *(Opcode.LINK, Opcode.WRITE, Opcode.SETXATTR, Opcode.REMOVEXATTR, Opcode.CREATE, Opcode.FALLOCATE),
    *(Opcode.RENAME2, Opcode.TMPFILE),
)


class Negotiated(Struct, frozen=True):
    """What kernel and server have settled in their first exchange, for whoever goes on in the server's place.

    Attributes:
        minor: the minor version of the protocol that is spoken.
        offered: all that the kernel can do.
    """

    minor: int
    offered: InitFlag


class Answers(ABC):
    """What all our file systems answer alike.

    Methods get nodeids that were given to the kernel, or that a file handle of another time holds. They raise
    Refused for an errno that is an answer; anything else counts as a failure.

    Attributes:
        contents: where reads lead.
        flags: what the kernel is asked for.
        negotiated: what was settled with the kernel; None before its first request.
    """

    flags: InitFlag = (
        InitFlag.ASYNC_READ
        | InitFlag.EXPORT_SUPPORT
        | InitFlag.ASYNC_DIO
        | InitFlag.PARALLEL_DIROPS
        | InitFlag.MAX_PAGES
    )

    def __init__(self, contents: Contents) -> None:
        self.contents = contents
        self.negotiated: Negotiated | None = None
        self._handlers: Mapping[int, Handler] = {
            Opcode.LOOKUP: self._lookup,
            Opcode.GETATTR: self._getattr,
            Opcode.READ: self._read,
            Opcode.INIT: self._init,
            **dict.fromkeys((Opcode.FORGET, Opcode.BATCH_FORGET), _say_nothing),
            **dict.fromkeys((Opcode.RELEASE, Opcode.RELEASEDIR, Opcode.DESTROY), _agree),
            **dict.fromkeys(_CHANGES, _refuse_change),
            **self.handlers(),
        }

    @abstractmethod
    def lookup(self, parent: int, name: bytes) -> Data | Later:
        """The entry `name` of a directory, as `wire.encode_entry` has it."""

    @abstractmethod
    def attributes(self, nodeid: int) -> bytes:
        """What stat(2) tells, as `wire.encode_attributes` has it."""

    @abstractmethod
    def read(self, nodeid: int, asked: ReadIn) -> Data | Later:
        """Bytes of a file, fewer than were asked for only at its end."""

    def handlers(self) -> Mapping[int, Handler]:
        """What else is answered; called once, at first."""
        return {}

    def offers(self, flag: InitFlag) -> bool:
        """Whether the kernel can do something."""
        return self.negotiated is not None and flag in self.negotiated.offered

    def answer(self, header: Header, body: memoryview) -> Answer:
        """The answer to a request. `body` is not needed any more afterwards.

        Raises:
            Refused: with the errno that is the answer.
            Exception: whatever goes wrong.
        """
        handler = self._handlers.get(header.opcode)
        if handler is None:
            raise Refused(errno.ENOSYS)
        return handler(header.nodeid, body)

    def _lookup(self, nodeid: int, body: memoryview) -> Answer:
        return self.lookup(nodeid, wire.decode_name(body))

    def _getattr(self, nodeid: int, _body: memoryview) -> Answer:
        return self.attributes(nodeid)

    def _read(self, nodeid: int, body: memoryview) -> Answer:
        return self.read(nodeid, wire.decode_read(body))

    def _init(self, _nodeid: int, body: memoryview) -> Answer:
        offer = wire_init.decode_init(body)
        if offer.major > wire_init.KERNEL_VERSION:
            return wire_init.encode_version()
        if (offer.major, offer.minor) < (wire_init.KERNEL_VERSION, wire_init.OLDEST_MINOR_VERSION):
            raise Refused(errno.EPROTO)
        minor = min(offer.minor, wire_init.KERNEL_MINOR_VERSION)
        self.negotiated = Negotiated(minor, offer.flags)
        agreed = InitOut(minor, offer.max_readahead, offer.flags & self.flags, MAX_BACKGROUND, MAX_PAGES)
        return wire_init.encode_init(agreed)


def _say_nothing(_nodeid: int, _body: memoryview) -> None:
    """Nothing is counted: inodes stay for as long as the mount does."""


def _agree(_nodeid: int, _body: memoryview) -> bytes:
    return b""


def _refuse_change(_nodeid: int, _body: memoryview) -> Answer:
    raise Refused(errno.EROFS)
