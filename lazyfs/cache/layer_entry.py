"""One layer's cache: a sparse file in the layer's address space, and a mark per leaf that is in it."""

import os
import re
import threading
import time
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from operator import attrgetter
from pathlib import Path
from typing import Final, Self

from msgspec import Struct
from msgspec.structs import replace

from indexer.digest import leaf_count
from indexer.toc import Span
from lazyfs.cache.entry_files import ABSENT, PRESENT, SYNCED, EntryFiles, Geometry, State
from lazyfs.cache.evicting import evict, extents_of
from lazyfs.cache.files import cache_errors, sync_path, write_sparse
from lazyfs.cache.last_use import REGION_BITS, note_use, region_count
from lazyfs.cache.layer_store import LayerStore
from lazyfs.cache.locks import try_lock_bytes, unlock_bytes, wait_acquired
from lazyfs.cache.room import Admission
from lazyfs.errors import CacheError

_ABSENT_RUN: Final = re.compile(rb"\0+")


class EntryStatistics(Struct, frozen=True):
    """A snapshot of an entry.

    Attributes:
        leaves: leaves of the layer.
        present: how many of them are here.
        synced: how many of those outlast a power cut.
        allocated_bytes: bytes of disk that the data takes.
        puts_refused: writes that found no room, or no working disk, through this object.
        full: the last word was that there is no room.
    """

    leaves: int
    present: int
    synced: int
    allocated_bytes: int
    puts_refused: int
    full: bool


class LayerEntry:
    """The bytes of one layer under one table of contents, as far as they are here.

    Content may be evicted at any time, by any process: what `has`, `missing` and `present` say holds when
    they say it, and `read_if_here` is how to read. Every method but `span_locks` may be called from any
    thread; `has`, `missing`, `read` and `read_if_here` do not block. After `close` they raise CacheError;
    calls that are under way in other threads end in peace.
    """

    def __init__(self, store: LayerStore, path: Path, geometry: Geometry, space: Admission) -> None:
        self.path = path
        self._store = store
        self._size, self._leaves = geometry
        self._space = space
        self._files: EntryFiles | None = store.attach(path, geometry)
        self._durable = False
        self._locked_spans: set[int] = set()
        self._touched = bytearray(region_count(self._size))
        self._counters = threading.Lock()
        self._refused = 0

    def __repr__(self) -> str:
        state = "closed" if self._files is None else f"{self.statistics().present} of {self._leaves} leaves"
        return f"<LayerEntry {self.path.parent.name[:12]}/{self.path.name[:12]}, {state}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives the files and the lock back, as soon as no other thread is using them."""
        self.note_use()
        self._files = None

    def _open(self) -> EntryFiles:
        files = self._files
        if files is None:
            raise CacheError("this cache entry is closed")
        return files

    # Reading

    def has(self, first_leaf: int, end_leaf: int) -> bool:
        """Whether all leaves [first_leaf, end_leaf) are here."""
        return self._open().marks.find(ABSENT, first_leaf, end_leaf) < 0

    def missing(self, first_leaf: int, end_leaf: int) -> list[tuple[int, int]]:
        """The longest ranges [first, end) of leaves within [first_leaf, end_leaf) that are not here."""
        end = min(end_leaf, self._leaves)
        return [run.span() for run in _ABSENT_RUN.finditer(self._open().marks, first_leaf, end)]

    def first_missing(self, first_leaf: int, end_leaf: int) -> int | None:
        """The first of the leaves [first_leaf, end_leaf) that is not here; None if all are."""
        found = self._open().marks.find(ABSENT, first_leaf, end_leaf)
        return None if found < 0 else found

    def last_missing(self, first_leaf: int, end_leaf: int) -> int | None:
        """The last of them that is not here; None if all are."""
        found = self._open().marks.rfind(ABSENT, first_leaf, end_leaf)
        return None if found < 0 else found

    def present(self, first_leaf: int, end_leaf: int) -> int:
        """How many of the leaves [first_leaf, end_leaf) are here."""
        marks = self._open().marks[first_leaf:end_leaf]
        return len(marks) - marks.count(ABSENT)

    @property
    def complete(self) -> bool:
        """Whether every leaf is here."""
        return self.has(0, self._leaves)

    def read_if_here(self, first_leaf: int, end_leaf: int, start: int, size: int) -> bytes | None:
        """Bytes [start, start + size) of the device; None if not all leaves [first_leaf, end_leaf) are here.

        The leaves must be those of the bytes. Costs half a microsecond more than the pread(2).

        Raises:
            CacheError: the range passes the end of the device, or the disk fails.
        """
        files = self._open()
        while True:
            evictions = files.evictions()
            if files.marks.find(ABSENT, first_leaf, end_leaf) >= 0:
                return None
            data = self.read(start, size)
            if files.evictions() == evictions:
                self._touched[start >> REGION_BITS] = 1
                return data
            if files.marks is not files.mapped:  # a copy, of which we cannot know any more what is right
                files.marks = bytes(self._leaves)

    def read_soon(self, first_leaf: int, end_leaf: int, start: int, size: int) -> None:
        """Has the disk read bytes [start, start + size), if all leaves [first_leaf, end_leaf) are here.

        Nobody waits for it, but for its being asked for.
        """
        if self.has(first_leaf, end_leaf):
            os.posix_fadvise(self._open().data, start, size, os.POSIX_FADV_WILLNEED)

    @property
    def evictions(self) -> int:
        """A number that changes whenever something was taken away."""
        return int.from_bytes(self._open().evictions(), "little")

    def read(self, start: int, size: int) -> bytes:
        """Bytes [start, start + size) of the device; those of leaves that are not here are not to be trusted.

        Nor are those of leaves that were here before, if `evictions` is another number afterwards.

        Raises:
            CacheError: the range passes the end of the device, or the disk fails.
        """
        try:
            data = os.pread(self._open().data, size, start)
        except OSError as error:
            raise CacheError(f"cannot read the cache: {error.strerror}") from error
        if len(data) != size:
            raise CacheError(f"no {size} bytes at {start} of a device of {self._size}")
        return data

    def fileno(self) -> int:
        """The descriptor of the sparse file, until `close`, for sendfile(2) and its like. Do not write."""
        return self._open().data

    # Filling

    def put_spans(self, spans: Sequence[Span], data: bytes) -> bool:
        """Writes spans back to back, which the caller has checked, and then marks them; as `put` says."""
        return self.put(spans[0].uncompressed_start, spans[0].first_leaf, data, spans[-1].end_leaf)

    def put(self, start: int, first_leaf: int, data: bytes, end_leaf: int | None = None) -> bool:
        """Writes whole leaves, which the caller has checked, and then marks them.

        Args:
            start: uncompressed offset of the first byte; where that leaf starts.
            first_leaf: number of the first leaf.
            data: leaf i is data[4096 * i : 4096 * (i + 1)]; the last of a span is shorter where that ends.
            end_leaf: number after the last leaf; need not be said of leaves of one span.

        Returns:
            False if there was no room, or the disk failed: nothing new is marked then.

        Raises:
            CacheError: the leaves are not of this layer.
        """
        if end_leaf is None:
            end_leaf = first_leaf + leaf_count(len(data))
        files = self._open()
        if not (
            0 <= start <= start + len(data) <= self._size and 0 <= first_leaf <= end_leaf <= self._leaves
        ):
            raise CacheError(f"no leaves [{first_leaf}, {end_leaf}) at {start} in a layer of {self._leaves}")
        written = (
            files.writable
            and self._space.admits(len(data))
            and self._write(files, start, first_leaf, end_leaf, data)
        )
        with self._counters:
            self._refused += not written
        return written

    def _write(self, files: EntryFiles, start: int, first_leaf: int, end_leaf: int, data: bytes) -> bool:
        try:
            with files.writing():
                write_sparse(files.data, data, start)
                files.mark(first_leaf, end_leaf, PRESENT)
        except TimeoutError:
            return False
        except OSError:
            self._space.exhausted()
            return False
        for region in range(start >> REGION_BITS, region_count(start + len(data))):
            self._touched[region] = 1
        return True

    @property
    def refuses(self) -> bool:
        """Whether the last word was that nothing can be put here."""
        return self._space.low or not self._open().writable

    def span_lock(self, number: int) -> AbstractAsyncContextManager[None]:
        """As `span_locks`, one span."""
        return self.span_locks(range(number, number + 1))

    @asynccontextmanager
    async def span_locks(self, numbers: range) -> AsyncIterator[None]:
        """Holds neighbouring spans of this entry alone among all processes. Only from the trio thread.

        Who wants others besides takes them in order.

        Raises:
            CacheError: the file system has no such locks.
        """
        files = self._open()

        def acquire_nowait() -> bool:
            if not self._locked_spans.isdisjoint(numbers):
                return False
            with cache_errors("lock a span"):
                locked = not files.writable or try_lock_bytes(files.data, numbers.start, len(numbers))
            if locked:
                self._locked_spans.update(numbers)
            return locked

        await wait_acquired(acquire_nowait)
        try:
            yield
        finally:
            self._locked_spans.difference_update(numbers)
            if files.writable:
                unlock_bytes(files.data, numbers.start, len(numbers))

    # Durability

    def sync(self) -> int:
        """Makes what is here outlast a power cut; returns how many leaves it is new for. Blocks for the disk.

        Raises:
            CacheError: the disk did not take it. What was not synced before counts as absent then: after a
                failed fsync(2) the page cache may forget what it could not write.
        """
        files = self._open()
        if not files.writable:
            return 0
        with cache_errors("sync the cache"), files.marks_locked():
            runs = files.runs(PRESENT)
            if not runs:
                return 0
            try:
                os.fdatasync(files.data)
            except OSError:
                for first, end in files.runs(PRESENT):
                    files.mark(first, end, ABSENT)
                raise
            for first, end in runs:
                files.mark(first, end, SYNCED)
            os.fdatasync(files.presence)
            if not self._durable:
                self._sync_names(files)
                self._durable = True
        return sum(end - first for first, end in runs)

    def _sync_names(self, files: EntryFiles) -> None:
        sync_path("state", files.directory)
        os.fsync(files.directory)
        sync_path(self.path.parent)
        sync_path(self._store.layers)

    @property
    def audited(self) -> bool:
        """Whether the layer has been compared with its table of contents, to the last byte."""
        state = self._open().read_state()
        return state is not None and state.audited

    def record_audit(self) -> None:
        """Remembers that the audit has passed, where anything can be written.

        Raises:
            CacheError: it cannot be written.
        """
        files = self._open()
        if not files.writable:
            return
        with cache_errors("record an audit"), files.marks_locked():
            state = files.read_state() or State(self._store.boot_id, self._size, self._leaves)
            files.write_state(replace(state, audited=True))
            self._durable = False

    # Forgetting

    def clear(self, leaf_ranges: Iterable[tuple[int, int]]) -> None:
        """Forgets leaves, durably; their bytes stay on disk. Readers may be under way. Blocks for the disk.

        Raises:
            CacheError: it cannot be written; they may be forgotten until the next boot only.
        """
        files = self._open()
        with cache_errors("clear marks"), files.marks_locked():
            for first_leaf, end_leaf in leaf_ranges:
                files.mark(first_leaf, end_leaf, ABSENT)
            os.fdatasync(files.presence)

    def evict(self, spans: Collection[Span]) -> bool:
        """Forgets spans and gives their disk space back; others may use the entry. Blocks for the disk.

        Returns:
            False where the file system cannot punch holes: they are forgotten, the space stays taken.

        Raises:
            CacheError: the disk fails, or somebody holds the locks for too long.
        """
        with cache_errors("evict from the cache"):
            return evict(self._open(), extents_of(sorted(spans, key=attrgetter("number"))))

    def note_use(self) -> None:
        """Tells evictors, also those of other processes, what was used since this was last called."""
        files = self._files
        if files is not None and files.writable and any(self._touched):
            touched, self._touched = self._touched, bytearray(len(self._touched))
            note_use(files.directory, touched, time.time())

    def statistics(self) -> EntryStatistics:
        """How much is here, and how writing went."""
        files = self._open()
        marks = files.marks[: self._leaves]
        return EntryStatistics(
            leaves=self._leaves,
            present=len(marks) - marks.count(ABSENT),
            synced=marks.count(SYNCED),
            allocated_bytes=os.fstat(files.data).st_blocks * 512,
            puts_refused=self._refused,
            full=self._space.low,
        )
