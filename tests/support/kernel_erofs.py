"""The kernel as a reader of metadata images: mount one, look at everything. Needs root, and files on ext4."""

import ctypes
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from stat import S_ISDIR, S_ISLNK, S_ISREG
from typing import NamedTuple

from indexer.erofs.read import MetadataImage

# The new mount calls have the same numbers on every architecture.
_MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT = 429, 430, 431, 432
_AT_FDCWD, _FROM_DESCRIPTOR = -100, 4
_SET_FLAG, _SET_STRING, _CREATE = 0, 1, 6
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
def mounted(image: Path, devices: Sequence[Path]) -> Iterator[Path]:
    """Mount an image file over its layers' files, in no place: the mount ends with its descriptor."""
    context = _call(_FSOPEN, b"erofs", 0)
    try:
        _call(_FSCONFIG, context, _SET_STRING, b"source", bytes(image), 0)
        for device in devices:
            _call(_FSCONFIG, context, _SET_STRING, b"device", bytes(device), 0)
        _call(_FSCONFIG, context, _SET_FLAG, b"directio", None, 0)
        _call(_FSCONFIG, context, _CREATE, None, None, 0)
        mount = _call(_FSMOUNT, context, 0, 0)
    finally:
        os.close(context)
    try:
        yield Path(f"/proc/self/fd/{mount}")
    finally:
        os.close(mount)


@contextmanager
def attached(images: Sequence[Path], devices: Mapping[bytes, Path], where: Path) -> Iterator[list[Path]]:
    """Images, each over those layers' files that it names by their tags, mounted below `where`."""
    points = [where / image.name for image in images]
    with ExitStack() as stack:
        for image, point in zip(images, points, strict=True):
            point.mkdir(parents=True)
            tags = [device.tag for device in MetadataImage(image.read_bytes()).devices]
            with mounted(image, [devices[tag] for tag in tags]) as mount:
                _call(_MOVE_MOUNT, int(mount.name), b"", _AT_FDCWD, bytes(point), _FROM_DESCRIPTOR)
            stack.callback(subprocess.run, ["umount", point], check=True)
        yield points


def _call(number: int, *arguments: object) -> int:
    result: int = _LIBC.syscall(number, *arguments)
    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno))
    return result


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
        content = Path(os.fsdecode(by_path)).read_bytes()
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
