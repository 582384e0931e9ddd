"""The three files of one layer's entry, and how an entry is found, made, trusted after a boot, or replaced.

Who holds what. A holder of an entry has the flock of its directory, shared. Making, replacing and
re-trusting an entry happen under the exclusive flock of the `layers` directory. Eviction has the entry's
flock exclusively and takes no other. Each checks, once it has the entry's lock, that the directory is still
the one at its path: removal is a rename.

No fsync is needed here. Marks of this boot count only while `state` names this boot, and boot ids never come
back: whatever part of an unsynced change survives a power cut, the next boot clears every mark that is not
`SYNCED`, and those were written after their data had been synced.
"""

import contextlib
import errno
import fcntl
import json
import mmap
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple

from indexer.digest import digest_hex
from lazyfs.cache.files import FILE_MODE, cache_errors, is_at, is_regular, make_directories, write_all
from lazyfs.cache.locks import byte_locked, directory_locked
from lazyfs.cache.scratch import Scratch
from lazyfs.errors import CacheError

ABSENT: Final = b"\0"
PRESENT: Final = b"\1"
SYNCED: Final = b"\2"

_VERSION: Final = 1
_STATE_LIMIT: Final = 1 << 16
_MARKS_LOCK: Final = 0  # the byte of `presence` whose lock serialises what lowers or settles marks
_GARBLED: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO})


class Geometry(NamedTuple):
    """What a layer's table of contents says of its address space.

    Attributes:
        size: bytes of the device, tail included.
        leaves: leaves of all spans.
    """

    size: int
    leaves: int


@dataclass(frozen=True, slots=True)
class State:
    """The facts of an entry that are not marks.

    Attributes:
        boot_id: the boot in which unsynced marks were made; "" if unknown.
        size: bytes of the device.
        leaves: leaves of all spans.
        audited: the whole layer has been compared with its table of contents.
        version: of the entry's files.
    """

    boot_id: str
    size: int
    leaves: int
    audited: bool = False
    version: int = _VERSION

    def encode(self) -> bytes:
        """As JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, data: bytes) -> "State | None":
        """From JSON; None for anything else, and for other versions."""
        try:
            state = cls(**json.loads(data))
        except (ValueError, TypeError, RecursionError):
            return None
        shape = tuple(type(getattr(state, name)) for name in cls.__slots__)
        return state if shape == (str, int, int, bool, int) and state.version == _VERSION else None


class EntryFiles:
    """The open files of one entry, its directory's flock held shared.

    The descriptors are closed when the last reference goes: a thread that still writes through them keeps
    them, so that a number never comes to mean another file under its hands.

    Attributes:
        directory: descriptor of the entry's directory.
        data: descriptor of the sparse file.
        presence: descriptor of the presence file, for writing marks.
        marks: the presence file mapped for reading; see `mark` for why not for writing.
    """

    __slots__ = ("data", "directory", "marks", "presence")

    def __init__(self, path: Path) -> None:
        self.directory = self.data = self.presence = -1
        self.directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        fcntl.flock(self.directory, fcntl.LOCK_SH)
        self.data = self._open("data")
        self.presence = self._open("presence")
        size = os.fstat(self.presence).st_size
        if not (size and is_regular(self.presence) and is_regular(self.data)):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "presence")
        self.marks = mmap.mmap(self.presence, size, prot=mmap.PROT_READ)

    def __del__(self) -> None:
        for descriptor in (self.presence, self.data, self.directory):
            if descriptor >= 0:
                os.close(descriptor)

    def _open(self, name: str) -> int:
        return os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=self.directory)

    def mark(self, first_leaf: int, end_leaf: int, mark: bytes) -> None:
        """Stores one mark for leaves [first_leaf, end_leaf).

        By pwrite(2): a store through the mapping into a page that a full file system cannot copy, as btrfs
        does for every write, would be a SIGBUS, and here it is an OSError.

        Raises:
            OSError: the marks could not be written; perhaps some were.
        """
        write_all(self.presence, mark * (end_leaf - first_leaf), first_leaf)

    def runs(self, mark: bytes) -> list[tuple[int, int]]:
        """The longest ranges of leaves that bear this mark."""
        if self.marks.find(mark) < 0:
            return []  # a hundred times faster than the expression, and what most syncs meet
        return [match.span() for match in re.finditer(re.escape(mark) + b"+", self.marks[:])]

    @contextmanager
    def marks_locked(self) -> Iterator[None]:
        """Excludes, between processes, others that lower or settle marks, or replace the state. Blocks.

        Raises:
            OSError: the file system has no such locks.
        """
        with byte_locked(self.presence, _MARKS_LOCK):
            yield

    def read_state(self) -> State | None:
        """The state; None if it is missing or garbled."""
        try:
            descriptor = os.open("state", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=self.directory)
        except OSError:
            return None
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            try:
                return State.decode(file.read(_STATE_LIMIT))
            except OSError:
                return None

    def write_state(self, state: State) -> None:
        """Replaces the state atomically. The caller holds the marks' lock, or has the entry alone.

        Raises:
            OSError: it cannot be written; the old one stands.
        """
        write_state(self.directory, state)

    def usable(self, geometry: Geometry) -> bool:
        """Whether sizes and marks are what an entry of this geometry can have."""
        state = self.read_state()
        return (
            os.fstat(self.data).st_size == geometry.size
            and len(self.marks) == max(1, geometry.leaves)
            and not self.marks[:].translate(None, ABSENT + PRESENT + SYNCED)
            and (state is None or (state.size, state.leaves) == geometry)
        )


def write_state(directory: int, state: State) -> None:
    """Replaces the state in an open entry directory atomically."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    descriptor = os.open("state.new", flags, FILE_MODE, dir_fd=directory)
    try:
        write_all(descriptor, state.encode(), 0)
    finally:
        os.close(descriptor)
    os.rename("state.new", "state", src_dir_fd=directory, dst_dir_fd=directory)


@dataclass(frozen=True, slots=True)
class LayerStore:
    """Where entries are and what finding one takes.

    Attributes:
        layers: the directory of all entries.
        scratch: where they are made.
        boot_id: of this boot.
    """

    layers: Path
    scratch: Scratch
    boot_id: str

    def path(self, layer_digest: str, toc_digest: str) -> Path:
        """Where the entry of this layer under this table of contents is.

        Raises:
            FormatError: not sha256 digests.
        """
        return self.layers / digest_hex(layer_digest) / digest_hex(toc_digest)

    def attach(self, path: Path, geometry: Geometry) -> EntryFiles:
        """The files of the entry at `path`; made if there is none or it is garbled. Blocks for evictors.

        Marks that may have outrun their data in an unclean stop of another boot are cleared. The directory's
        modification time becomes now: the entry's last use.

        Raises:
            CacheError: the entry can neither be used nor made.
        """
        with cache_errors("open a layer's cache entry"):
            files = self.find(path, geometry)
            if files is None or not self.trusts(files):
                files = None  # its lock goes first, or two that wait here would keep each other's entry alive
                with directory_locked(self.layers):
                    files = self._find_or_make(path, geometry)
            os.utime(files.directory)
            return files

    def _find_or_make(self, path: Path, geometry: Geometry) -> EntryFiles:
        files = self.find(path, geometry)
        if files is None:
            self._make(path, geometry)
            files = self.find(path, geometry)
        if files is None:
            raise CacheError(f"the cache entry {path} was made and is not there")
        if not self.trusts(files):
            _trust_synced_only(files, geometry, self.boot_id)
        return files

    def find(self, path: Path, geometry: Geometry) -> EntryFiles | None:
        """The files of the entry at `path` if there is a sound one. Blocks for evictors.

        Raises:
            OSError: it may be there, but cannot be opened.
        """
        try:
            files = EntryFiles(path)
        except OSError as error:
            if error.errno in _GARBLED:
                return None
            raise
        return files if is_at(files.directory, path) and files.usable(geometry) else None

    def install(self, made: Path, path: Path) -> None:
        """Renames a directory made in scratch to `path`, where any other is discarded.

        The caller holds the lock of `layers`.

        Raises:
            OSError: it cannot be done.
        """
        make_directories(path.parent, self.layers)
        self.scratch.discard(path)
        made.rename(path)

    def _make(self, path: Path, geometry: Geometry) -> None:
        with self.scratch.directory() as (directory, made):
            fill_directory(directory, State(self.boot_id, *geometry), ABSENT)
            self.install(made, path)

    def trusts(self, files: EntryFiles) -> bool:
        """Whether all marks were made in this boot, or have been synced."""
        state = files.read_state()
        return state is not None and state.boot_id == self.boot_id


def fill_directory(directory: int, state: State, mark: bytes) -> None:
    """Gives an entry's directory its files: `data` of the right size, all leaves marked `mark`, the state.

    Raises:
        OSError: they cannot be made.
    """
    for name in ("data", "presence"):
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, FILE_MODE, dir_fd=directory)
        try:
            if name == "data":
                os.ftruncate(descriptor, state.size)
            else:
                # Not sparse: on a full tmpfs even reading a hole through a mapping is a SIGBUS.
                os.posix_fallocate(descriptor, 0, max(1, state.leaves))
                if mark != ABSENT:
                    write_all(descriptor, mark * state.leaves, 0)
        finally:
            os.close(descriptor)
    write_state(directory, state)


def _trust_synced_only(files: EntryFiles, geometry: Geometry, boot_id: str) -> None:
    with files.marks_locked():
        state = files.read_state() or State("", *geometry)
        for first, end in files.runs(PRESENT):
            files.mark(first, end, ABSENT)
        # On a full disk the old state stays: marks of this boot are then cleared once more by whoever opens.
        with contextlib.suppress(OSError):
            files.write_state(replace(state, boot_id=boot_id))
