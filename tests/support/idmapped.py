"""Mounts whose owners are shown as others: user namespaces, and clones of mounts by them (mount_setattr(2)).

with user_namespace(100_000) as namespace, idmapped(mount_point, tmp_path / "clone", namespace) as clone:
    assert (clone / "of root").stat().st_uid == 100_000
"""

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.mounts import unmount_lazily

OVERFLOW = 65534
"""Who owns what belongs to nobody of a namespace."""

# include/uapi/asm-generic/unistd.h, include/uapi/linux/mount.h, include/uapi/linux/fcntl.h
OPEN_TREE, MOVE_MOUNT, MOUNT_SETATTR = 428, 429, 442
OPEN_TREE_CLONE = 1
MOVE_MOUNT_F_EMPTY_PATH = 4
MOUNT_ATTR_IDMAP = 0x0010_0000
AT_FDCWD, AT_EMPTY_PATH = -100, 0x1000


class MountAttr(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


@contextmanager
def user_namespace(first: int, count: int = 65536, *, first_gid: int | None = None) -> Iterator[int]:
    """A descriptor of a user namespace whose users 0, 1, ... are `first`, ...; groups likewise. As root."""
    command = ["unshare", "--user", "sh", "-c", "echo; exec cat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        place = Path(f"/proc/{process.pid}")
        (place / "uid_map").write_text(f"0 {first} {count}")
        (place / "gid_map").write_text(f"0 {first if first_gid is None else first_gid} {count}")
        descriptor = os.open(place / "ns/user", os.O_RDONLY | os.O_CLOEXEC)
        process.stdin.close()
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def idmapped(mount: Path, where: Path, namespace: int) -> Iterator[Path]:
    """A clone of the mount at or above `mount`, shown at `where` with the owners that a namespace gives.

    Args:
        mount: a directory in it, the clone's root.
        where: made if it is missing.
        namespace: a descriptor.

    Raises:
        OSError: EINVAL where the file system cannot be shown so.
    """
    where.mkdir(parents=True, exist_ok=True)
    tree = _call(OPEN_TREE, AT_FDCWD, os.fsencode(mount), OPEN_TREE_CLONE | os.O_CLOEXEC)
    try:
        attr = MountAttr(attr_set=MOUNT_ATTR_IDMAP, userns_fd=namespace)
        _call(MOUNT_SETATTR, tree, b"", AT_EMPTY_PATH, ctypes.byref(attr), ctypes.sizeof(attr))
        _call(MOVE_MOUNT, tree, b"", AT_FDCWD, os.fsencode(where), MOVE_MOUNT_F_EMPTY_PATH)
    finally:
        os.close(tree)
    try:
        yield where
    finally:
        unmount_lazily(where)


def _call(number: int, *arguments: object) -> int:
    values = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result = int(ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), *values))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
