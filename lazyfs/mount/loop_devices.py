"""Loop devices, for kernels whose EROFS mounts block devices only (before Linux 6.12)."""

import errno
import fcntl
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final

from lazyfs.errors import MountError

# include/uapi/linux/loop.h
_LOOP_CONFIGURE: Final = 0x4C0A
_LOOP_CTL_GET_FREE: Final = 0x4C82
_LO_FLAGS_READ_ONLY: Final = 1
_LO_FLAGS_AUTOCLEAR: Final = 4
_LO_FLAGS_DIRECT_IO: Final = 16
_FLAGS: Final = _LO_FLAGS_READ_ONLY | _LO_FLAGS_AUTOCLEAR

# struct loop_config: fd, block_size, then loop_info64 (lo_flags in it), then 64 reserved bytes
_CONFIG: Final = struct.Struct("<II52xI176x64x")
_BLOCK_SIZE: Final = 512
_ATTEMPTS: Final = 100


@contextmanager
def loop_devices(files: Sequence[bytes]) -> Iterator[list[bytes]]:
    """Read-only loop devices over these files, as long as the block lasts or something has them mounted.

    Raises:
        MountError: there is no loop device to be had.
    """
    with ExitStack() as stack:
        yield [stack.enter_context(_loop_device(path)) for path in files]


@contextmanager
def _loop_device(path: bytes) -> Iterator[bytes]:
    try:
        backing = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            name, device = _bind(backing)
        finally:
            os.close(backing)
    except OSError as error:
        raise MountError(f"no loop device for {os.fsdecode(path)}: {error.strerror}") from error
    try:
        yield name
    finally:
        os.close(device)


def _bind(backing: int) -> tuple[bytes, int]:
    """(path, descriptor) of a device bound to this file. Others may take the free one that we found first."""
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_ATTEMPTS):
            name = b"/dev/loop%d" % fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
            device = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                _configure(device, backing)
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:
                    raise
            else:
                return name, device
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, "others always take the free loop device first")


def _configure(device: int, backing: int) -> None:
    """Direct I/O, where the file can do it, keeps its bytes from being cached twice."""
    try:
        fcntl.ioctl(device, _LOOP_CONFIGURE, _CONFIG.pack(backing, _BLOCK_SIZE, _FLAGS | _LO_FLAGS_DIRECT_IO))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        fcntl.ioctl(device, _LOOP_CONFIGURE, _CONFIG.pack(backing, _BLOCK_SIZE, _FLAGS))
