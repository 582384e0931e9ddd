"""The kernel's calls for containers that Python lacks: unshare, setns, prctl, mount, openat2(2)."""

import ctypes
import errno
import os
from typing import Final

# include/uapi/linux/sched.h, mount.h, prctl.h, openat2.h
NEW_MOUNTS: Final = 0x00020000
NEW_USERS: Final = 0x10000000
_SLAVE: Final = 1 << 19
_RECURSIVE: Final = 16384
_SET_DEATH_SIGNAL: Final = 1
_SET_SUBREAPER: Final = 36
_OPENAT2: Final = 437
_RESOLVE_IN_ROOT: Final = 0x10


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def unshare(namespaces: int) -> None:
    """Leave for new namespaces, of NEW_MOUNTS and NEW_USERS. Only for a process with one thread.

    Raises:
        OSError: EPERM or ENOSPC where the machine does not allow it.
    """
    _check(_libc().unshare(namespaces))


def join_users(pid: int) -> None:
    """Enter the user namespace of a process. Only for a process with one thread.

    Raises:
        OSError: EPERM where that is not one of ours, ENOENT where there is no such process.
    """
    namespace = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc().setns(namespace, NEW_USERS))
    finally:
        os.close(namespace)


def keep_mounts_private() -> None:
    """Let mounts from here on stay in our mount namespace; others' still come to us.

    Raises:
        OSError: EPERM.
    """
    _check(_libc().mount(None, b"/", None, _RECURSIVE | _SLAVE, None))


def become_subreaper() -> None:
    """Let orphans among our descendants become our children, so that we learn how they ended."""
    _check(_libc().prctl(_SET_SUBREAPER, 1, 0, 0, 0))


def die_with_parent(number: int) -> None:
    """Have the kernel send us this signal when the thread that made us ends."""
    _check(_libc().prctl(_SET_DEATH_SIGNAL, number, 0, 0, 0))


def open_in_root(root: int, path: bytes, flags: int) -> int:
    """A descriptor of `path` as a process would open it whose root directory is `root` (chroot(2)).

    Symbolic links and ".." lead nowhere else.

    Raises:
        OSError: as openat2(2) says; ENOSYS before Linux 5.6; EAGAIN where a path with ".." is being moved.
    """
    if b"\0" in path:  # the kernel would see what stands before it
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    how = _OpenHow(flags | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT)
    size = ctypes.c_long(ctypes.sizeof(how))
    number, directory = ctypes.c_long(_OPENAT2), ctypes.c_long(root)
    return _check(int(_libc().syscall(number, directory, path, ctypes.byref(how), size)))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
