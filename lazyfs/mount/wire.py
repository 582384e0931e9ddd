"""The messages of /dev/fuse: what the kernel asks, and what it takes for an answer.

Names and layouts are those of include/uapi/linux/fuse.h, protocol 7.23 (Linux 3.15) and later, whose
structures have only grown since. Numbers are in the machine's own byte order. No descriptor is touched here.
"""

import os
from enum import IntEnum, IntFlag
from struct import Struct
from typing import Final, NamedTuple

from indexer.erofs.read import Inode

ROOT_ID: Final = 1
"""The nodeid of the root directory."""

FOREVER_S: Final = 365 * 86400
"""For how long the kernel may keep entries and attributes: what we serve never changes."""

MIN_READ_BUFFER: Final = 8192
"""The kernel gives no request to a shorter buffer, nor to one without room for `max_write` and headers."""


class WireError(Exception):
    """A message that is not laid out as the protocol has it."""


class Opcode(IntEnum):
    """What is asked (`enum fuse_opcode`)."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    TMPFILE = 51


class OpenFlag(IntFlag):
    """What the kernel may do with an opened file (`FOPEN_*`)."""

    DIRECT_IO = 1 << 0
    KEEP_CACHE = 1 << 1
    CACHE_DIR = 1 << 3


class NotifyCode(IntEnum):
    """What a server says unasked (`enum fuse_notify_code`)."""

    RESEND = 7


IN_HEADER: Final = Struct("=IIQQIIIHH")  # len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding
OUT_HEADER: Final = Struct("=IiQ")  # len, error, unique

_ATTR: Final = (
    "QQQqqqIIIIIIIIII"  # ino, size, blocks, times, nanoseconds, mode, nlink, uid, gid, rdev, blksize, flags
)
_ENTRY: Final = "QQQQII"  # nodeid, generation, entry_valid, attr_valid, and their nanoseconds
_DIRENT: Final = "QQII"  # ino, off, namelen, type

_ENTRY_OUT: Final = Struct(f"={_ENTRY}{_ATTR}")
_ATTR_OUT: Final = Struct(f"=QII{_ATTR}")
_DIRENT_OUT: Final = Struct(f"={_DIRENT}")
_DIRENTPLUS_OUT: Final = Struct(f"={_ENTRY}{_ATTR}{_DIRENT}")
_OPEN_OUT: Final = Struct("=QII")
_GETXATTR_IN: Final = Struct("=II")
_GETXATTR_OUT: Final = Struct("=II")
_KSTATFS: Final = Struct("=QQQQQIIII24x")
_READ_IN: Final = Struct("=QQIIQII")
_INTERRUPT_IN: Final = Struct("=Q")
_CREATE_IN: Final = Struct("=IIII")
_RELEASE_IN: Final = Struct("=QIIQ")
_PADDING: Final = tuple(bytes(-size % 8) for size in range(8))
_SHOWN: Final = 64
_NANO: Final = 1_000_000_000
_BLOCK: Final = 512  # of st_blocks on Linux, whatever a block is elsewhere (stat(2))
_PAGE: Final = 4096
_TYPE_SHIFT: Final = 12  # from S_IFMT to the d_type of readdir(3)


class Header(NamedTuple):
    """Who asks what of which inode (`struct fuse_in_header`).

    Attributes:
        opcode: what, one of `Opcode` or unknown.
        unique: its number, to be repeated in the answer; bit 63 marks one that was handed out before.
        nodeid: the inode.
        pid: the thread that waits, in the numbers of who mounted; 0 where it has none there.
    """

    opcode: int
    unique: int
    nodeid: int
    pid: int


def decode_header(message: memoryview) -> Header:
    """The header of a request, which is all of `message`; its body follows at `IN_HEADER.size`.

    Raises:
        WireError: it is cut off, or of another length than it says.
    """
    if len(message) < IN_HEADER.size:
        raise WireError(f"a request of {len(message)} bytes")
    length, opcode, unique, nodeid, _, _, pid, _, _ = IN_HEADER.unpack_from(message)
    if length != len(message):
        raise WireError(f"a request of {len(message)} bytes that says {length}")
    return Header(opcode, unique, nodeid, pid)


def describe(header: Header, body: memoryview) -> str:
    """A request in words, for a log: "read(7, 0, 4096)"."""
    try:
        name = Opcode(header.opcode).name.lower()
    except ValueError:
        name = f"request {header.opcode}"
    details: tuple[object, ...] = ()
    if header.opcode in {Opcode.READ, Opcode.READDIR, Opcode.READDIRPLUS} and len(body) >= _READ_IN.size:
        details = decode_read(body)[:2]
    elif header.opcode == Opcode.LOOKUP:
        details = (bytes(body[:_SHOWN]),)
    return f"{name}({', '.join(repr(value) for value in (header.nodeid, *details))})"


class ReadIn(NamedTuple):
    """What is to be read, of a file or a directory (`struct fuse_read_in`).

    Attributes:
        offset: of a file in bytes; of a directory where the last entry said that one may go on.
        size: how many bytes are taken at most.
        direct: whether the reader passes the page cache by (O_DIRECT): who asks is who wants all of it.
        handle: what OPEN gave.
    """

    offset: int
    size: int
    direct: bool = False
    handle: int = 0


def decode_read(body: memoryview) -> ReadIn:
    """The body of READ, READDIR and READDIRPLUS.

    Raises:
        WireError: it is cut off.
    """
    handle, offset, size, _, _, flags, _ = unpack(_READ_IN, body)
    return ReadIn(offset, size, bool(flags & os.O_DIRECT), handle)


def decode_release(body: memoryview) -> int:
    """The handle in the body of RELEASE.

    Raises:
        WireError: it is cut off.
    """
    handle, _, _, _ = unpack(_RELEASE_IN, body)
    return int(handle)


def decode_name(body: memoryview) -> bytes:
    """The body of LOOKUP.

    Raises:
        WireError: it does not end with its NUL.
    """
    name = bytes(body)
    if name.find(b"\0") != len(name) - 1:
        raise WireError("a name that does not end with its NUL")
    return name[:-1]


class GetxattrIn(NamedTuple):
    """Which xattr is wanted (`struct fuse_getxattr_in`).

    Attributes:
        size: how many bytes are taken at most; 0: only the size is wanted.
        name: which; b"" of LISTXATTR.
    """

    size: int
    name: bytes


def decode_getxattr(body: memoryview) -> GetxattrIn:
    """The body of GETXATTR and LISTXATTR.

    Raises:
        WireError: it is cut off.
    """
    size, _ = unpack(_GETXATTR_IN, body)
    rest = body[_GETXATTR_IN.size :]
    return GetxattrIn(size, decode_name(rest) if rest else b"")


def decode_interrupt(body: memoryview) -> int:
    """The number of the request whose reader got a signal.

    Raises:
        WireError: it is cut off.
    """
    (unique,) = unpack(_INTERRUPT_IN, body)
    return int(unique)


def decode_create(body: memoryview) -> bytes:
    """The name in the body of CREATE.

    Raises:
        WireError: it is cut off.
    """
    unpack(_CREATE_IN, body)
    return decode_name(body[_CREATE_IN.size :])


def encode_entry(inode: Inode, valid_s: int = FOREVER_S) -> bytes:
    """The answer to a LOOKUP that finds this inode, which counts so long (`struct fuse_entry_out`)."""
    return _ENTRY_OUT.pack(inode.nid, 0, valid_s, valid_s, 0, 0, *_attr(inode))


NO_ENTRY: Final = _ENTRY_OUT.pack(0, 0, FOREVER_S, *[0] * 19)
"""The answer to a LOOKUP that the kernel may remember: there is no such name."""


def encode_attributes(inode: Inode, valid_s: int = FOREVER_S) -> bytes:
    """The answer to GETATTR, which counts so long (`struct fuse_attr_out`)."""
    return _ATTR_OUT.pack(valid_s, 0, 0, *_attr(inode))


def _attr(inode: Inode) -> tuple[int, ...]:
    """`struct fuse_attr`. Access and change times are the modification time."""
    nid, mode, nlink, uid, gid, size, mtime_ns, rdev, _ = inode
    seconds, nanoseconds = divmod(mtime_ns, _NANO)
    return (
        nid,
        size,
        -(-size // _BLOCK),
        seconds,
        seconds,
        seconds,
        nanoseconds,
        nanoseconds,
        nanoseconds,
        mode,
        nlink,
        uid,
        gid,
        rdev & 0xFFFFFFFF,
        _PAGE,
        0,
    )


def encode_dirent(name: bytes, inode: Inode, after: int) -> bytes:
    """An entry of the answer to READDIR (`struct fuse_dirent`).

    Args:
        name: of the entry.
        inode: what it names.
        after: the offset at which a listing goes on after it.
    """
    size = len(name)
    return _DIRENT_OUT.pack(inode.nid, after, size, inode.mode >> _TYPE_SHIFT) + name + _PADDING[size & 7]


def encode_direntplus(name: bytes, inode: Inode, after: int) -> bytes:
    """An entry of the answer to READDIRPLUS (`struct fuse_direntplus`): the inode is looked up as well.

    The arguments are those of `encode_dirent`.
    """
    nid, size = inode.nid, len(name)
    fields = (nid, 0, FOREVER_S, FOREVER_S, 0, 0, *_attr(inode), nid, after, size, inode.mode >> _TYPE_SHIFT)
    return _DIRENTPLUS_OUT.pack(*fields) + name + _PADDING[size & 7]


def encode_open(flags: OpenFlag, handle: int = 0) -> bytes:
    """The answer to OPEN and OPENDIR; requests carry the nodeid as well as the handle."""
    return _OPEN_OUT.pack(handle, flags, 0)


def encode_xattr(value: bytes, size: int) -> bytes | None:
    """The answer to GETXATTR or LISTXATTR; None if it does not fit into `size`, which is ERANGE.

    Args:
        value: of the xattr; or all names, each with a NUL.
        size: from `GetxattrIn`.
    """
    if size == 0:
        return _GETXATTR_OUT.pack(len(value), 0)
    return value if len(value) <= size else None


def encode_statfs(*, block_size: int, blocks: int, files: int, longest_name: int) -> bytes:
    """The answer to STATFS (`struct fuse_kstatfs`): nothing is free."""
    return _KSTATFS.pack(blocks, 0, 0, files, 0, block_size, longest_name, block_size, 0)


def encode_reply(unique: int, size: int) -> bytes:
    """What goes before an answer of `size` bytes."""
    return OUT_HEADER.pack(OUT_HEADER.size + size, 0, unique)


def encode_error(unique: int, errno: int) -> bytes:
    """An answer that is an error; `errno` is positive."""
    return OUT_HEADER.pack(OUT_HEADER.size, -errno, unique)


def encode_notification(code: NotifyCode) -> bytes:
    """A whole message that answers nothing, without a body."""
    return OUT_HEADER.pack(OUT_HEADER.size, code, 0)


def unpack(layout: Struct, body: memoryview) -> tuple[int, ...]:
    """The fields at the front of a body.

    Raises:
        WireError: it is cut off.
    """
    if len(body) < layout.size:
        raise WireError(f"a body of {len(body)} bytes where {layout.size} are due")
    return layout.unpack_from(body)
