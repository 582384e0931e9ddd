"""The kernel's mount calls that Python lacks: fsopen(2), fsmount(2), mount_setattr(2), umount2(2) and others.

The new calls (Linux 5.2) are used rather than mount(2): they give a mount that is attached nowhere yet, take
options of any number, and say in words why they refuse. Every call may wait for a file system's daemon, and
so for ours: none of them belongs on the thread that answers FUSE requests.
"""

import contextlib
import ctypes
import errno
import os
from struct import Struct
from types import TracebackType
from typing import Final, Self

from lazyfs.errors import MountError

# The same on every architecture but alpha (include/uapi/asm-generic/unistd.h).
_OPEN_TREE: Final = 428
_MOVE_MOUNT: Final = 429
_FSOPEN: Final = 430
_FSCONFIG: Final = 431
_FSMOUNT: Final = 432
_MOUNT_SETATTR: Final = 442

# include/uapi/linux/mount.h
_FSOPEN_CLOEXEC: Final = 1
_FSMOUNT_CLOEXEC: Final = 1
_FSCONFIG_SET_FLAG: Final = 0
_FSCONFIG_SET_STRING: Final = 1
_FSCONFIG_CMD_CREATE: Final = 6
_MOVE_MOUNT_F_EMPTY_PATH: Final = 4
_OPEN_TREE_CLONE: Final = 1
_MOUNT_ATTR_IDMAP: Final = 0x0010_0000
_MOUNT_ATTR: Final = Struct("=QQQQ")  # attr_set, attr_clr, propagation, userns_fd
_MNT_DETACH: Final = 2
_UMOUNT_NOFOLLOW: Final = 8
_AT_FDCWD: Final = -100
_AT_EMPTY_PATH: Final = 0x1000

MOUNT_READ_ONLY: Final = 1
MOUNT_NO_SETUID: Final = 2
MOUNT_NO_DEVICES: Final = 4
MOUNT_NO_PROGRAMS: Final = 8

LONGEST_VALUE: Final = 255  # fs/fsopen.c copies 256 bytes of a string, its NUL among them

_LOG_LIMIT: Final = 4096


class FsContext:
    """A file system being configured, before it is mounted. A context manager.

    Raises:
        MountRefused: the kernel has no such call (ENOSYS) or file system (ENODEV), or we may not (EPERM).
    """

    def __init__(self, fstype: str) -> None:
        self._fstype = fstype
        try:
            self._fd = _system_call(_FSOPEN, fstype.encode(), _FSOPEN_CLOEXEC)
        except OSError as error:
            raise MountRefused(fstype, error, "") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def string(self, key: str, value: bytes) -> None:
        """Sets an option that has a value, of at most LONGEST_VALUE bytes.

        Raises:
            MountRefused: the kernel does not take it.
        """
        self._configure(_FSCONFIG_SET_STRING, key, value)

    def flag(self, key: str) -> None:
        """Sets an option without a value.

        Raises:
            MountRefused: the kernel does not take it.
        """
        self._configure(_FSCONFIG_SET_FLAG, key, None)

    def mount(self, attributes: int) -> int:
        """A descriptor of the mounted file system, attached to no directory; the last one closed ends it.

        Args:
            attributes: of those called MOUNT_….

        Raises:
            MountRefused: the kernel cannot mount it.
        """
        self._configure(_FSCONFIG_CMD_CREATE, None, None)
        try:
            return _system_call(_FSMOUNT, self._fd, _FSMOUNT_CLOEXEC, attributes)
        except OSError as error:
            raise MountRefused(self._fstype, error, self._complaints()) from error

    def _configure(self, command: int, key: str | None, value: bytes | None) -> None:
        try:
            _system_call(_FSCONFIG, self._fd, command, key.encode() if key else None, value, 0)
        except OSError as error:
            raise MountRefused(self._fstype, error, self._complaints()) from error

    def _complaints(self) -> str:
        """What the kernel says of the failure (fsopen(2): messages are read from the descriptor)."""
        lines = []
        with contextlib.suppress(OSError):
            while line := os.read(self._fd, _LOG_LIMIT):
                lines.append(line.decode(errors="replace").strip().removeprefix("e "))
        return "; ".join(lines)


class MountRefused(MountError):
    """The kernel refused to mount.

    Attributes:
        errno: its error number.
    """

    def __init__(self, fstype: str, error: OSError, complaints: str) -> None:
        self.errno = error.errno or errno.EIO
        said = f" ({complaints})" if complaints else ""
        super().__init__(f"the kernel cannot mount {fstype}: {os.strerror(self.errno)}{said}")


def attach_mount(mount_fd: int, path: bytes) -> None:
    """Puts a mount that is attached nowhere onto the directory `path`.

    Raises:
        OSError: the directory is missing, or no directory.
    """
    _system_call(_MOVE_MOUNT, mount_fd, b"", _AT_FDCWD, path, _MOVE_MOUNT_F_EMPTY_PATH)


def attach_mapped(path: bytes, target: bytes, namespace_fd: int) -> None:
    """Shows a read-only clone of the mount at `path` at a directory, with the owners of a user namespace.

    What belongs to user 0 there belongs to whom the namespace's user 0 is, and so on (mount_setattr(2)).

    Raises:
        OSError: EINVAL where the file system cannot be shown so: FUSE before Linux 6.12, EROFS before 5.19.
    """
    clone_fd = _system_call(_OPEN_TREE, _AT_FDCWD, path, _OPEN_TREE_CLONE | os.O_CLOEXEC)
    attributes = _MOUNT_ATTR.pack(_MOUNT_ATTR_IDMAP | MOUNT_READ_ONLY, 0, 0, namespace_fd)
    try:
        _system_call(_MOUNT_SETATTR, clone_fd, b"", _AT_EMPTY_PATH, attributes, len(attributes))
        attach_mount(clone_fd, target)
    finally:
        os.close(clone_fd)


def unmount_kernel(path: bytes, *, lazy: bool) -> None:
    """Takes away the topmost mount at `path`; `lazy`: now from the tree, later from its users.

    Raises:
        OSError: EBUSY while something uses it, EINVAL where nothing is mounted, EPERM if we may not.
    """
    flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)
    if _libc().umount2(path, flags) != 0:
        _raise_errno()


def _system_call(number: int, *arguments: int | bytes | None) -> int:
    # syscall(2) is variadic: ctypes would pass a Python int as a C int, whose upper half is undefined there.
    values = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result = int(_libc().syscall(ctypes.c_long(number), *values))
    if result < 0:
        _raise_errno()
    return result


def _libc() -> ctypes.CDLL:
    # A CDLL gives up the interpreter's lock while it calls, without which our own daemon could not answer.
    return ctypes.CDLL(None, use_errno=True)


def _raise_errno() -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))
