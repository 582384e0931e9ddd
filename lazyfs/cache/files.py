"""File primitives of the cache: private modes, bounded reads, sparse writes, holes; OSError as CacheError."""

import ctypes
import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from lazyfs.errors import CacheBusy, CacheError

DIRECTORY_MODE: Final = 0o700
FILE_MODE: Final = 0o600
PAGE: Final = 4096
NO_WRITING: Final = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

_PLAIN_NAME: Final = re.compile(r"[0-9A-Za-z_-][0-9A-Za-z._-]{0,199}", re.ASCII)
_ZERO_PAGE: Final = bytes(PAGE)
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_FALLOC_FL_KEEP_SIZE: Final = 0x01
_FALLOC_FL_PUNCH_HOLE: Final = 0x02


def plain_name(name: str) -> str:
    """`name`, which is safe as the first part of a file name: at most 200 letters, digits, ".", "_", "-".

    Raises:
        CacheError: it is not, or it starts with a dot.
    """
    if not _PLAIN_NAME.fullmatch(name):
        raise CacheError(f"not a plain name: {name[:100]!r}")
    return name


@contextmanager
def cache_errors(action: str) -> Iterator[None]:
    """Any OSError inside becomes a CacheError that says it came while trying to `action`.

    Raises:
        CacheBusy: somebody has something locked for too long.
        CacheError: see above.
    """
    try:
        yield
    except OSError as error:
        where = f" ({os.fsdecode(error.filename)})" if isinstance(error.filename, str | bytes) else ""
        kind = CacheBusy if isinstance(error, TimeoutError) else CacheError
        raise kind(f"cannot {action}: {error.strerror or error}{where}") from error


def create_private(path: Path) -> int:
    """A descriptor, for reading and writing, of a new file that only we may open.

    Raises:
        OSError: it exists, or cannot be made.
    """
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, FILE_MODE)


def make_directories(path: Path, root: Path) -> None:
    """Makes `path` and its parents below `root`, each private; those that exist stay as they are.

    Raises:
        OSError: one cannot be made.
    """
    made = root
    for part in path.relative_to(root).parts:
        made /= part
        made.mkdir(mode=DIRECTORY_MODE, exist_ok=True)


def is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file or directory is (still) the one that `path` names, symlinks not followed."""
    try:
        there = path.lstat()
    except OSError:
        return False
    return os.path.samestat(os.fstat(descriptor), there)


def open_regular(path: Path) -> int | None:
    """A descriptor for reading the regular file at `path`; None where there is none, or something else.

    Raises:
        OSError: it cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO}:
            return None
        raise
    if is_regular(descriptor):
        return descriptor
    os.close(descriptor)
    return None


def read_bounded(path: Path, limit: int) -> bytes | None:
    """The content of a regular file of at most `limit` bytes; None where there is none, or a larger one.

    Raises:
        OSError: it cannot be read.
    """
    descriptor = open_regular(path)
    if descriptor is None:
        return None
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(limit + 1)
    return data if len(data) <= limit else None


def is_regular(descriptor: int) -> bool:
    """Whether this is a regular file."""
    return os.fstat(descriptor).st_mode & 0o170000 == 0o100000


def write_all(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Writes all of `data` at `offset`; pwrite(2) may write less than it was given.

    Raises:
        OSError: the disk is full, or worse; some of it may be written.
    """
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        offset += written
        view = view[written:]


def write_sparse(descriptor: int, data: bytes, offset: int) -> None:
    """Makes [offset, offset + len(data)) read as `data`; whole aligned pages of zeros stay or become free.

    The file may hold other bytes there, left by a power cut: pages of zeros are written where it does.

    Raises:
        OSError: the disk is full, or worse; some of it may be written.
    """
    view = memoryview(data)
    position = 0
    for start, end in _zero_runs(data, offset):
        if position < start:
            write_all(descriptor, view[position:start], offset + position)
        _make_zero(descriptor, offset + start, offset + end)
        position = end
    if position < len(data):
        write_all(descriptor, view[position:], offset + position)


def _zero_runs(data: bytes, offset: int) -> Iterator[tuple[int, int]]:
    """The longest runs [start, end) of `data` that are whole zero pages of a file with it at `offset`."""
    first = -offset % PAGE
    last = len(data) - PAGE
    heads = data[first::PAGE]  # of each page one byte: few need a second look
    at = heads.find(0)
    while at >= 0 and (position := first + at * PAGE) <= last:
        start = position
        while position <= last and data.startswith(_ZERO_PAGE, position):
            position += PAGE
        if position > start:
            yield start, position
        at = heads.find(0, max((position - first) // PAGE, at + 1))


def _make_zero(descriptor: int, start: int, end: int) -> None:
    for first, last in data_runs(descriptor, start, end):
        write_all(descriptor, bytes(last - first), first)


def data_runs(descriptor: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The parts of [start, end) that the file system does not know to be holes.

    Raises:
        OSError: the file system does not answer.
    """
    position = start
    while position < end:
        try:
            position = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but holes from here to the end
                return
            raise
        if position >= end:
            return
        hole = min(os.lseek(descriptor, position, os.SEEK_HOLE), end)
        yield position, hole
        position = hole


def kernel_boot_id() -> str:
    """What the kernel calls this boot; no two are called the same.

    Raises:
        OSError: there is no /proc.
    """
    return _BOOT_ID.read_text("ascii").strip()


def sync_path(path: Path | str, directory: int | None = None) -> None:
    """fsync(2) of what is at `path`, relative to an open directory if given; nothing there is no error.

    Raises:
        OSError: the disk did not take it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=directory)
    except FileNotFoundError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def punch_hole(descriptor: int, start: int, end: int) -> bool:
    """Gives the blocks of [start, end) back; it reads as zeros afterwards, the file's size stays.

    Returns:
        False where the file system cannot punch holes; then nothing has changed.

    Raises:
        OSError: it failed otherwise.
    """
    if start >= end:
        return True
    fallocate = ctypes.CDLL(None, use_errno=True).fallocate
    fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
    if fallocate(descriptor, mode, start, end - start) == 0:
        return True
    code = ctypes.get_errno()
    if code in {errno.EOPNOTSUPP, errno.ENOSYS}:
        return False
    raise OSError(code, os.strerror(code))
