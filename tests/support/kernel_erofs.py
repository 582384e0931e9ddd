"""The kernel as a reader of metadata images: mount one, look at everything, unmount. Needs root and ext4."""

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISDIR, S_ISLNK, S_ISREG
from typing import NamedTuple

_READ_ONLY = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


class Seen(NamedTuple):
    """What system calls tell of one path. `size` is None for a directory: the format's own affair."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    size: int | None
    mtime_ns: int
    rdev: int
    link: bytes
    xattrs: dict[bytes, bytes]
    content: bytes


@contextmanager
def mounted(image: Path, devices: Sequence[Path], where: Path) -> Iterator[Path]:
    """Mount an image file over its layers' files by mount(2), at the new directory `where`."""
    where.mkdir()
    options = ",".join([*(f"device={path}" for path in devices), "directio"]).encode()
    if _LIBC.mount(bytes(image), bytes(where), b"erofs", _READ_ONLY, options) != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno), str(image))
    try:
        yield where
    finally:
        if _LIBC.umount2(bytes(where), 0) != 0:
            errno = ctypes.get_errno()
            raise OSError(errno, os.strerror(errno), str(where))


def walk(root: Path) -> dict[bytes, Seen]:
    """All paths below a mount point, the root as b"". Deeper than PATH_MAX works: it goes by descriptors."""
    stack = [(b"", os.open(root, os.O_RDONLY | os.O_DIRECTORY))]
    seen = {b"": _look(stack[0][1], b".")}
    while stack:
        path, directory = stack.pop()
        with os.scandir(directory) as entries:
            names = [os.fsencode(entry.name) for entry in entries]
        for name in names:
            below = path + b"/" * bool(path) + name
            seen[below] = _look(directory, name)
            if S_ISDIR(seen[below].mode):
                stack.append((below, os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=directory)))
        os.close(directory)
    return seen


def _look(directory: int, name: bytes) -> Seen:
    stat = os.stat(name, dir_fd=directory, follow_symlinks=False)
    by_path = b"/proc/self/fd/%d/%s" % (directory, name)  # there is no listxattrat(2) yet
    content = b""
    if S_ISREG(stat.st_mode):
        descriptor = os.open(name, os.O_RDONLY, dir_fd=directory)
        content = b"".join(iter(lambda: os.read(descriptor, 1 << 20), b""))
        os.close(descriptor)
    return Seen(
        *(stat.st_ino, stat.st_mode, stat.st_nlink, stat.st_uid, stat.st_gid),
        None if S_ISDIR(stat.st_mode) else stat.st_size,
        stat.st_mtime_ns,
        stat.st_rdev,
        os.readlink(name, dir_fd=directory) if S_ISLNK(stat.st_mode) else b"",
        {
            os.fsencode(key): os.getxattr(by_path, key, follow_symlinks=False)
            for key in os.listxattr(by_path, follow_symlinks=False)
        },
        content,
    )
