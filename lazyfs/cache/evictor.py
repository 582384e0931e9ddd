"""Makes room by taking away what was used least recently, a region of an entry at a time."""

import logging
import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby
from pathlib import Path
from typing import Final, NamedTuple

from indexer.toc import SpanTable
from lazyfs.cache.entry_files import EntryFiles, Geometry, State
from lazyfs.cache.evicting import Extent, evict, extents_of
from lazyfs.cache.files import cache_errors, data_runs
from lazyfs.cache.inventory import entry_paths
from lazyfs.cache.last_use import REGION, REGION_BITS, last_uses, region_count
from lazyfs.cache.layer_store import LayerStore
from lazyfs.errors import CacheError
from lazyfs.flock import flock_within

_log = logging.getLogger(__name__)

_MOST_REGIONS: Final = 16  # taken away at once; writers of the entry wait meanwhile
_PATIENCE_S: Final = 5.0

LoadSpans = Callable[[str, str], SpanTable | None]
"""The span table of a layer digest and the digest of a table of contents; None if it is not known."""


class Region(NamedTuple):
    """A part of an entry that has content.

    Attributes:
        used: when it was last used, seconds since 1970.
        path: of the entry.
        number: of the region.
    """

    used: float
    path: Path
    number: int


class Evictor:
    """Takes content of layers out of a cache.

    Args:
        store: where the entries are.
        load_spans: gives span tables. Of entries whose table is not known, all goes at once.
    """

    def __init__(self, store: LayerStore, load_spans: LoadSpans) -> None:
        self._store = store
        self._load_spans = load_spans

    def make_room(self, goal: int, pinned: Collection[str] = ()) -> int:
        """Takes away at least `goal` bytes, if so many can be had; returns how many.

        Others may use all that meanwhile. What cannot be taken away just now is passed over.

        Args:
            goal: bytes of disk.
            pinned: digests of layers that stay as they are.
        """
        freed = 0
        tables: dict[Path, SpanTable | None] = {}
        ahead = deque(_batches(self._regions(pinned)))
        while ahead and freed < goal:
            batch = ahead.popleft()
            wanted = max(1, (goal - freed) >> REGION_BITS)
            if wanted < len(batch):
                ahead.appendleft(batch[wanted:])
            path = batch[0].path
            try:
                if path not in tables:
                    tables[path] = self._load_spans(f"sha256:{path.parent.name}", f"sha256:{path.name}")
                freed += self._evict(path, batch[:wanted], tables[path])
            except (OSError, CacheError) as error:
                _log.info("cannot evict from %s: %s", path.parent.name[:12], error)
        return freed

    def empty(self, path: Path) -> int:
        """Takes all content of an entry away, whoever uses it; returns how many bytes came back.

        Raises:
            CacheError: the disk fails, or somebody holds the entry's locks for too long.
        """
        with cache_errors("empty a layer's cache entry"):
            return self._evict(path, (), None)

    def _regions(self, pinned: Collection[str]) -> list[Region]:
        """What there is to take away, in the order in which it goes."""
        found: list[Region] = []
        for path in entry_paths(self._store.layers):
            if f"sha256:{path.parent.name}" not in pinned:
                with suppress(OSError):
                    found += _regions_of(path)
        return sorted(found)

    def _evict(self, path: Path, regions: Sequence[Region], spans: SpanTable | None) -> int:
        """Takes regions of one entry away; returns how many bytes of disk came back."""
        files = _opened(self._store, path)
        if files is None or not files.writable:
            return 0
        size = os.fstat(files.data).st_size
        if spans is None or spans.leaves != files.leaves or spans.uncompressed_size > size:
            extents = [Extent(0, size, 0, files.leaves)]
        else:
            newest = max(region.used for region in regions)
            extents = _extents(files, spans, {region.number for region in regions}, newest)
        before = os.fstat(files.data).st_blocks
        if extents:
            evict(files, extents)
        return max(0, before - os.fstat(files.data).st_blocks) * 512


def _opened(store: LayerStore, path: Path) -> EntryFiles | None:
    """The files of an entry, apart from those of anybody who uses it."""
    data = (path / "state").read_bytes()
    state = State.decode(data[: 1 << 16])
    if state is None:
        return None
    return store.find(path, Geometry(state.size, state.leaves))


def _extents(files: EntryFiles, spans: SpanTable, numbers: Collection[int], newest: float) -> list[Extent]:
    """The spans that touch these regions, but for those that touch one that was used later."""
    count = region_count(os.fstat(files.data).st_size)
    used = last_uses(files.directory, count, 0)
    chosen = {}
    for number in numbers:
        start = number << REGION_BITS
        end = min(start + REGION, spans.uncompressed_size)
        for at in spans.covering(start, end) if start < end else ():
            span = spans[at]
            touched = range(span.uncompressed_start >> REGION_BITS, region_count(span.uncompressed_end - 1))
            if all(used[region] <= newest for region in touched):
                chosen[at] = span
    return extents_of(chosen[at] for at in sorted(chosen))


def _regions_of(path: Path) -> list[Region]:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        data = os.open("data", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
        try:
            size = os.fstat(data).st_size
            used = last_uses(directory, region_count(size), os.fstat(directory).st_mtime)
            numbers = {
                number
                for start, end in data_runs(data, 0, size)
                for number in range(start >> REGION_BITS, region_count(end - 1))
            }
        finally:
            os.close(data)
    finally:
        os.close(directory)
    return [Region(used[number], path, number) for number in sorted(numbers)]


def _batches(regions: Iterable[Region]) -> Iterator[Sequence[Region]]:
    """Neighbours in the order of eviction that are of one entry, a few at a time."""
    for _, group in groupby(regions, key=lambda region: region.path):
        batch = list(group)
        for start in range(0, len(batch), _MOST_REGIONS):
            yield batch[start : start + _MOST_REGIONS]


@contextmanager
def only_evictor(directory: Path) -> Iterator[bool]:
    """Whether we are the one process that makes room in a cache; waits a while for another to be done."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield flock_within(descriptor, _PATIENCE_S)
    finally:
        os.close(descriptor)
