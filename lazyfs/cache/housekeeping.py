"""Makes room in a cache, and removes from it what nobody refers to, or what is not wanted any more."""

import logging
import threading
import time
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from weakref import WeakSet

from lazyfs.cache.catalogue import Catalogue, KeptImage, Listed
from lazyfs.cache.collecting import GRACE_S, Collector, Garbage, size_of
from lazyfs.cache.evictor import Evictor, LoadSpans, only_evictor
from lazyfs.cache.files import cache_errors
from lazyfs.cache.free_space import FreeSpace
from lazyfs.cache.inventory import allocated, counted, entry_paths, is_in_use
from lazyfs.cache.layer_entry import LayerEntry
from lazyfs.cache.layer_store import LayerStore
from lazyfs.cache.room import Ledger
from lazyfs.errors import CacheError

_log = logging.getLogger(__name__)


class OpenEntries:
    """The entries that this process has open. Safe in any thread."""

    def __init__(self) -> None:
        self._entries: WeakSet[LayerEntry] = WeakSet()
        self._lock = threading.Lock()

    def add(self, entry: LayerEntry) -> None:
        """One was opened; it goes by itself."""
        with self._lock:
            self._entries.add(entry)

    def note_use(self) -> None:
        """Tells evictors what was used."""
        with self._lock:
            entries = list(self._entries)
        for entry in entries:
            entry.note_use()


class Evictions(NamedTuple):
    """How often room was made, and how many bytes went for that."""

    times: int = 0
    bytes: int = 0


class Housekeeper:
    """What a cache does about its size. All methods may block for the disk; safe in any thread.

    Args:
        root: the cache directory.
        store: its entries.
        catalogue: its images.
        load_spans: gives span tables.
        entries: those that are open in this process; others may come and go.
        space: the file system's free space.
        ledger: the quota; None for none.
    """

    def __init__(
        self,
        root: Path,
        store: LayerStore,
        catalogue: Catalogue,
        load_spans: LoadSpans,
        entries: OpenEntries,
        space: FreeSpace,
        ledger: Ledger | None,
    ) -> None:
        self._root = root
        self._store = store
        self._catalogue = catalogue
        self._entries = entries
        self._space = space
        self._ledger = ledger
        self._evictor = Evictor(store, load_spans)
        self._collector = Collector(root, store.scratch, store.remove)
        self._evictions = Evictions()

    def __repr__(self) -> str:
        return f"<Housekeeper of {self._root}, {self._space!r}, {self._ledger!r}>"

    def evictions(self) -> Evictions:
        """What was evicted through this object so far."""
        return self._evictions

    def make_room(self, size: int = 0) -> int:
        """Evicts what was used least recently, until there is room for `size` more bytes; returns how many.

        Room is below the quota by a tenth, and above the free-space floor. Pinned images stay. One process
        does this at a time; others wait for it a while, and do nothing.
        """
        try:
            with only_evictor(self._root / "locks") as alone:
                freed = self._make_room(size) if alone else 0
        except (OSError, CacheError) as error:
            _log.warning("cannot make room in the cache: %s", error)
            return 0
        if freed:
            self._evictions = Evictions(self._evictions.times + 1, self._evictions.bytes + freed)
        return freed

    def excess(self) -> int:
        """How many bytes `make_room` would have to take away now."""
        goal = self._space.missing(0)
        if self._ledger is not None:
            goal = max(goal, counted(self._root) - self._ledger.low_mark)
        return max(0, goal)

    def _make_room(self, size: int) -> int:
        goal = self._space.missing(size)
        total = 0
        if self._ledger is not None:
            expected = self._ledger.expects()
            total = counted(self._root)
            self._ledger.settle(total, expected)
            if not self._ledger.has_left(size):
                goal = max(goal, total + size - self._ledger.low_mark)
        if goal <= 0:
            return 0
        self._entries.note_use()
        freed = self._evictor.make_room(goal, self._catalogue.pinned_layers())
        freed += self._drop_images(goal - freed) if freed < goal else 0
        if self._ledger is not None:
            self._ledger.settle(max(0, total - freed), total)  # others wrote meanwhile, and lost that too
        return freed

    def _drop_images(self, goal: int) -> int:
        """Removes what nobody refers to, then forgets the oldest images, as many as `goal` bytes take."""
        listed = self._catalogue.images()
        old = self._droppable(listed)
        survey = self._collector.survey(GRACE_S)

        def garbage_without(count: int) -> list[Garbage]:
            gone = set(old[:count])
            return survey.garbage([one.image for one in listed if one.image not in gone])

        count = bisect_left(range(len(old)), goal, key=lambda count: size_of(garbage_without(count)))
        for image in old[:count]:
            self._catalogue.remove(image)
        return self.collect(garbage_without(count))

    def _droppable(self, listed: Sequence[Listed]) -> list[KeptImage]:
        """The images that may be forgotten, the one used least recently first.

        Their last use is that of their last mount: whatever is mounted, their layers tell.
        """
        mounted = self._mounted([one.image for one in listed])
        old = [one.image for one in reversed(listed) if one.last_used <= time.time() - GRACE_S]
        return [image for image in old if not image.pinned and image not in mounted]

    def _mounted(self, images: Sequence[KeptImage]) -> set[KeptImage]:
        """Those whose layers are all open, and those that have an open layer which is in none of these."""
        entries = [path for path in entry_paths(self._root / "layers") if is_in_use(path)]
        used = {(f"sha256:{path.parent.name}", f"sha256:{path.name}") for path in entries}
        whole = {image for image in images if image.layers and used.issuperset(image.layers)}
        unexplained = used - {layer for image in whole for layer in image.layers}
        return whole | {image for image in images if not unexplained.isdisjoint(image.layers)}

    def tidy(self) -> None:
        """Tells others what was used here, and makes room before a writer has to."""
        self._entries.note_use()
        crowded = self._ledger is not None and self._ledger.expects() > self._ledger.high_mark
        if crowded or not self._space.asked(0):
            self.make_room()
            self._space.asked(0)

    def garbage(self, grace_s: float = GRACE_S) -> list[Garbage]:
        """What no kept image refers to and is older than `grace_s` seconds; see `collecting`.

        Raises:
            CacheError: the disk fails.
        """
        with cache_errors("look for what nobody needs"):
            kept: list[KeptImage] = [listed.image for listed in self._catalogue.images()]
            return self._collector.survey(grace_s).garbage(kept)

    def collect(self, garbage: Iterable[Garbage]) -> int:
        """Removes what `garbage` found, but for open layers; returns how many bytes came back.

        Raises:
            CacheError: the disk fails.
        """
        with cache_errors("remove what nobody needs"):
            return self._collector.remove(garbage)

    def remove_image(self, listed: Listed) -> int:
        """Forgets an image and all that belonged to it alone; returns how many bytes of disk came back.

        Of entries that somebody has open the content goes, which is fetched again when it is read.

        Raises:
            CacheError: the disk fails.
        """
        before = set(self.garbage(0))
        others = [other.image for other in self._catalogue.images() if other.image != listed.image]
        shared = {layer for image in others for layer, _ in image.layers}
        self._catalogue.remove(listed.image)
        freed = self.collect(item for item in self.garbage(0) if item not in before)
        return freed + sum(self.drop_layer(layer) for layer, _ in listed.image.layers if layer not in shared)

    def drop_layer(self, layer_digest: str) -> int:
        """Removes the content of a layer, under all tables of contents; returns how many bytes came back.

        Where somebody has it open, the empty entry stays.
        """
        freed = 0
        for path in entry_paths(self._root / "layers"):
            if f"sha256:{path.parent.name}" == layer_digest:
                freed += self._drop_entry(path)
        return freed

    def _drop_entry(self, path: Path) -> int:
        taken = allocated(path)
        return taken if self._store.remove(path) else self._evictor.empty(path)
