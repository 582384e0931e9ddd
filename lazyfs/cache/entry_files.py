"""The open files of one layer's entry.

Who holds what. A holder of an entry has the flock of its directory, shared. Making, replacing and
re-trusting an entry happen under the exclusive flock of the `layers` directory; removal, which is a rename,
under the exclusive flock of the entry's. Each checks, once it has the entry's lock, that the directory is
still the one at its path.

Two bytes of the presence file are locks among processes, and a mutex each among threads: `marks_locked` for
what lowers or settles marks, `writing` for what writes data and the marks that vouch for it. Who needs both
takes them in this order. Readers take none: see `evicting`.
"""

import errno
import json
import mmap
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple, Self

from msgspec import Struct
from msgspec.structs import asdict

from lazyfs.cache.files import FILE_MODE, NO_WRITING, is_regular, write_all
from lazyfs.cache.locks import byte_locked
from lazyfs.flock import wait_flock

ABSENT: Final = b"\0"
PRESENT: Final = b"\1"
SYNCED: Final = b"\2"

_VERSION: Final = 2
_STATE_LIMIT: Final = 1 << 16
_MARKS_LOCK: Final = 0  # the byte of `presence` whose lock serialises what lowers or settles marks
_DATA_LOCK: Final = 1  # the one whose lock serialises what writes data or takes it away
PATIENCE_S: Final = 5.0
_SYNC_PATIENCE_S: Final = 60.0  # whoever has the marks' lock may wait for the disk
_COUNTER_SIZE: Final = 8


class Geometry(NamedTuple):
    """What a layer's table of contents says of its address space.

    Attributes:
        size: bytes of the device, tail included.
        leaves: leaves of all spans.
    """

    size: int
    leaves: int


class State(Struct, frozen=True):
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
        shape = tuple(type(getattr(state, name)) for name in cls.__struct_fields__)
        return state if shape == (str, int, int, bool, int) and state.version == _VERSION else None


class EntryFiles:
    """The open files of one entry, its directory's flock held shared.

    The descriptors are closed when the last reference goes: a thread that still writes through them keeps
    them, so that a number never comes to mean another file under its hands.

    Attributes:
        directory: descriptor of the entry's directory.
        data: descriptor of the sparse file.
        presence: descriptor of the presence file, for writing marks.
        leaves: how many marks it has; the counter of evictions comes after them.
        mapped: the presence file mapped for reading; see `mark` for why not for writing.
        marks: the same; or, where marks of another boot cannot be cleared, a copy in which they are.
        writable: whether anything can be written.
    """

    __slots__ = (
        *("_data_mutex", "_marks_mutex", "counter_at", "data", "directory", "leaves"),
        *("mapped", "marks", "presence", "writable"),
    )

    mapped: mmap.mmap
    marks: mmap.mmap | bytes

    def __init__(self, leaves: int) -> None:
        self.directory = self.data = self.presence = -1
        self.leaves = leaves
        self.counter_at = presence_size(leaves) - _COUNTER_SIZE
        self.writable = True
        self._marks_mutex = threading.Lock()
        self._data_mutex = threading.Lock()

    @classmethod
    def at(cls, path: Path, leaves: int) -> Self:
        """The files of the entry at `path`; blocks for who has it alone.

        Raises:
            TimeoutError: that took too long.
            OSError: there is none, or it cannot be opened.
        """
        files = cls(leaves)
        files.directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        wait_flock(files.directory, path, shared=True)
        files.data = files.open_in("data")
        files.presence = files.open_in("presence")
        size = os.fstat(files.presence).st_size
        if not (size and is_regular(files.presence) and is_regular(files.data)):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "presence")
        files.marks = files.mapped = mmap.mmap(files.presence, size, prot=mmap.PROT_READ)
        return files

    @classmethod
    def homeless(cls, geometry: Geometry) -> Self:
        """Files for an entry that the disk has no room for: nothing is in them, and nothing can be put there.

        Raises:
            OSError: not even that can be had.
        """
        files = cls(geometry.leaves)
        files.writable = False
        files.data = os.memfd_create("lazyfs", os.MFD_CLOEXEC)
        os.ftruncate(files.data, geometry.size)
        files.directory = os.dup(files.data)
        files.presence = os.dup(files.data)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        files.marks = files.mapped = mmap.mmap(-1, presence_size(geometry.leaves), flags=flags)
        return files

    def __del__(self) -> None:
        for descriptor in (self.presence, self.data, self.directory):
            if descriptor >= 0:
                os.close(descriptor)

    def open_in(self, name: str) -> int:
        """A descriptor of a file of the entry's; from the first that cannot be written on, only for reading.

        Raises:
            OSError: it cannot be opened.
        """
        flags = os.O_NOFOLLOW | os.O_NONBLOCK
        if self.writable:
            try:
                return os.open(name, os.O_RDWR | flags, dir_fd=self.directory)
            except OSError as error:
                if error.errno not in NO_WRITING:
                    raise
                self.writable = False
        return os.open(name, os.O_RDONLY | flags, dir_fd=self.directory)

    def evictions(self) -> bytes:
        """A counter that changes whenever something is taken away; see `evicting`."""
        return self.mapped[self.counter_at : self.counter_at + _COUNTER_SIZE]

    def count_eviction(self) -> None:
        """Moves the counter on. The caller holds `writing`.

        Raises:
            OSError: it could not be written.
        """
        count = int.from_bytes(self.evictions(), "little") + 1
        write_all(self.presence, (count % (1 << 64)).to_bytes(_COUNTER_SIZE, "little"), self.counter_at)

    def mark(self, first_leaf: int, end_leaf: int, mark: bytes) -> None:
        """Stores one mark for leaves [first_leaf, end_leaf).

        By pwrite(2): a store through the mapping into a page that a full file system cannot copy, as btrfs
        does for every write, would be a SIGBUS, and here it is an OSError.

        Raises:
            OSError: the marks could not be written; perhaps some were.
        """
        write_all(self.presence, mark * (end_leaf - first_leaf), first_leaf)

    def runs(self, mark: bytes, first_leaf: int = 0, end_leaf: int | None = None) -> list[tuple[int, int]]:
        """The longest ranges of leaves within [first_leaf, end_leaf) that bear this mark."""
        end = self.leaves if end_leaf is None else end_leaf
        if self.marks.find(mark, first_leaf, end) < 0:
            return []  # a hundred times faster than the expression, and what most syncs meet
        marks = self.marks[first_leaf:end]
        spans = (match.span() for match in re.finditer(re.escape(mark) + b"+", marks))
        return [(first_leaf + first, first_leaf + last) for first, last in spans]

    @contextmanager
    def marks_locked(self, patience_s: float = _SYNC_PATIENCE_S) -> Iterator[None]:
        """Excludes others, in any process, that lower or settle marks, or replace the state. Blocks.

        Raises:
            TimeoutError: one of another process did not end within `patience_s` seconds.
            OSError: the file system has no such locks.
        """
        with self._marks_mutex, byte_locked(self.presence, _MARKS_LOCK, patience_s):
            yield

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Excludes others, in any process, that write data or take it away. They are quick.

        Raises:
            TimeoutError: somebody was not.
            OSError: the file system has no such locks.
        """
        with self._data_mutex, byte_locked(self.presence, _DATA_LOCK, PATIENCE_S):
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
            and len(self.mapped) == presence_size(geometry.leaves)
            and not self.mapped[: geometry.leaves].translate(None, ABSENT + PRESENT + SYNCED)
            and (state is None or (state.size, state.leaves) == geometry)
        )


def presence_size(leaves: int) -> int:
    """Bytes of a presence file: a mark per leaf, then the counter of evictions at a multiple of its size."""
    return -(-leaves // _COUNTER_SIZE) * _COUNTER_SIZE + _COUNTER_SIZE


def write_state(directory: int, state: State) -> None:
    """Replaces the state in an open entry directory atomically."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    descriptor = os.open("state.new", flags, FILE_MODE, dir_fd=directory)
    try:
        write_all(descriptor, state.encode(), 0)
    finally:
        os.close(descriptor)
    os.rename("state.new", "state", src_dir_fd=directory, dst_dir_fd=directory)


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
                os.posix_fallocate(descriptor, 0, presence_size(state.leaves))
                if mark != ABSENT:
                    write_all(descriptor, mark * state.leaves, 0)
        finally:
            os.close(descriptor)
    write_state(directory, state)
