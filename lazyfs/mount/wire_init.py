"""The first exchange on /dev/fuse (`FUSE_INIT`): what kernel and server can do, and what they agree upon.

Names and layouts are those of include/uapi/linux/fuse.h. Flags are one number of 64 bits here; the message
has them in two halves, the second of which counts where both know INIT_EXT (Linux 5.17).
"""

from enum import IntFlag
from struct import Struct
from typing import Final

import msgspec

from lazyfs.mount.wire import unpack

KERNEL_VERSION: Final = 7
"""The major version of the protocol."""

KERNEL_MINOR_VERSION: Final = 40
"""The latest minor version whose rules are kept here."""

OLDEST_MINOR_VERSION: Final = 23
"""Before it, `fuse_init_out` was shorter."""

MAX_WRITE: Final = 4096
"""The least that the kernel takes for `max_write`. Nothing is ever written."""


class InitFlag(IntFlag):
    """What kernel and server can do, and agree upon (`FUSE_INIT`)."""

    ASYNC_READ = 1 << 0
    EXPORT_SUPPORT = 1 << 4
    DO_READDIRPLUS = 1 << 13
    ASYNC_DIO = 1 << 15
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    POSIX_ACL = 1 << 20
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    INIT_EXT = 1 << 30
    ALLOW_IDMAP = 1 << 40


_INIT_IN: Final = Struct("=IIII")  # and flags2, if INIT_EXT
_FLAGS2: Final = Struct("=I")
_INIT_OUT: Final = Struct("=IIIIHHIIHHI28x")  # flags2 last
_BARE_INIT_OUT: Final = Struct("=II")

_HALF: Final = 32
_LOW: Final = (1 << _HALF) - 1


class InitIn(msgspec.Struct, frozen=True):
    """How the kernel begins (`struct fuse_init_in`).

    Attributes:
        major: of its protocol.
        minor: the same.
        max_readahead: how many bytes it reads ahead at most.
        flags: what it can do.
    """

    major: int
    minor: int
    max_readahead: int
    flags: InitFlag


def decode_init(body: memoryview) -> InitIn:
    """The body of INIT.

    Raises:
        WireError: it is cut off.
    """
    major, minor, max_readahead, flags = unpack(_INIT_IN, body)
    if flags & InitFlag.INIT_EXT:
        flags |= unpack(_FLAGS2, body[_INIT_IN.size :])[0] << _HALF
    return InitIn(major, minor, max_readahead, InitFlag(flags))


class InitOut(msgspec.Struct, frozen=True):
    """What we agree to (`struct fuse_init_out`).

    Attributes:
        minor: the minor version of the protocol that is spoken.
        max_readahead: at most what the kernel said, in bytes.
        flags: of those it offered; above bit 31 only with INIT_EXT.
        max_background: how many reads of the page cache may wait for us.
        max_pages: the pages of a read at most.
    """

    minor: int
    max_readahead: int
    flags: InitFlag
    max_background: int
    max_pages: int


def encode_init(out: InitOut) -> bytes:
    """The answer to INIT."""
    return _INIT_OUT.pack(
        KERNEL_VERSION,
        out.minor,
        out.max_readahead,
        out.flags & _LOW,
        out.max_background,
        out.max_background * 3 // 4,  # congestion_threshold, as the kernel's own default
        MAX_WRITE,
        1,  # time_gran, nanoseconds
        out.max_pages,
        0,
        out.flags >> _HALF,
    )


def encode_version() -> bytes:
    """The answer to an INIT of a later major version: the kernel asks again in ours."""
    return _BARE_INIT_OUT.pack(KERNEL_VERSION, KERNEL_MINOR_VERSION)
