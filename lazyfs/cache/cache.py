"""The cache directory and everything in it, opened once and handed down."""

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from indexer.toc import SpanTable
from lazyfs.cache.catalogue import Catalogue
from lazyfs.cache.checking import EntryCheck, check_entry
from lazyfs.cache.documents import Documents
from lazyfs.cache.entry_files import Geometry
from lazyfs.cache.files import NO_ROOM, NO_WRITING, cache_errors, kernel_boot_id
from lazyfs.cache.filling import Filling
from lazyfs.cache.free_space import FreeSpace
from lazyfs.cache.housekeeping import Housekeeper, OpenEntries
from lazyfs.cache.images import Images
from lazyfs.cache.inventory import EntryInfo, Usage, counted, describe_entry, list_entries, measure
from lazyfs.cache.layer_entry import LayerEntry
from lazyfs.cache.layer_store import LayerStore
from lazyfs.cache.locks import named_lock
from lazyfs.cache.quarantine import Quarantine
from lazyfs.cache.references import References
from lazyfs.cache.room import Ledger, Room
from lazyfs.cache.root import open_root
from lazyfs.cache.scratch import Scratch
from lazyfs.cache.shelf import Shelf
from lazyfs.cache.tocs import Tocs, load_spans
from lazyfs.errors import CacheBusy, CacheError

_log = logging.getLogger(__name__)


class Cache:
    """One cache directory, shared by any number of processes of one user.

    Args:
        path: the directory; made private if it is new or empty.
        boot_id: of this boot; by default the kernel's.
        free_floor_bytes: so many bytes of the file system are left free, as far as evicting helps.
        quota_bytes: how much the cache may take; 0 for any amount.

    Attributes:
        root: the directory, without symlinks.
        catalogue: the images that are kept, and pins.
        housekeeper: makes room, and removes what is not wanted.
        documents: manifests and configs by digest.
        references: what references named last.
        tocs: tables of contents.
        images: compiled metadata images.
        quarantine: notes of tables of contents that were found to lie.
        traces: what readers of images touched, by manifest.
        packs: boot packs that were made here, and the heads of others, by manifest.

    Raises:
        CacheError: it cannot be used; see `open_root`.
    """

    def __init__(
        self, path: Path, *, boot_id: str | None = None, free_floor_bytes: int = 0, quota_bytes: int = 0
    ) -> None:
        self.root = open_root(path)
        with cache_errors("open the cache"):
            boot_id = boot_id or kernel_boot_id()
            scratch = Scratch(self.root / "tmp")
            scratch.sweep()
        self._scratch = scratch
        self._quota_bytes = quota_bytes
        self._store = LayerStore(self.root / "layers", scratch, boot_id)
        self._entries = OpenEntries()
        self.catalogue = Catalogue(self.root / "catalogue", scratch)
        self.documents = Documents(self.root / "documents", scratch)
        self.references = References(self.root / "references", scratch)
        self.tocs = Tocs(self.root / "tocs", scratch)
        self.images = Images(self.root / "images", scratch)
        self.quarantine = Quarantine(self.root / "quarantine", scratch)
        space = FreeSpace(self.root, free_floor_bytes)
        measure = partial(counted, self.root)
        ledger = Ledger(self.root / "room", quota_bytes, measure) if quota_bytes else None
        self.housekeeper = Housekeeper(
            self.root, self._store, self.catalogue, self.spans, self._entries, space, ledger
        )
        self._space = Room(space, ledger, self.housekeeper.make_room)
        self.traces = Shelf(self.root / "traces", scratch)
        self.packs = Shelf(self.root / "packs", scratch)

    def __repr__(self) -> str:
        return f"Cache({str(self.root)!r})"

    def layer(self, layer_digest: str, toc_digest: str, size: int, leaf_count: int) -> LayerEntry:
        """The entry of a layer under one table of contents, made if there is none. May wait for an evictor.

        Args:
            layer_digest: digest of the layer's blob.
            toc_digest: digest of the table of contents.
            size: bytes of the device, tail included.
            leaf_count: leaves of all spans.

        Raises:
            FormatError: not sha256 digests.
            CacheError: the entry can neither be used nor made.
        """
        path = self._store.path(layer_digest, toc_digest)
        entry = LayerEntry(self._store, path, Geometry(size, leaf_count), self._space)
        self._entries.add(entry)
        return entry

    def fill(self, layer_digest: str, least_bytes: int = 0) -> Filling:
        """A new entry to fill while the layer's table of contents is being made.

        Args:
            layer_digest: digest of the layer's blob.
            least_bytes: how large it will be at least; one that would fill the quota is over from the start.
        """
        fits = not self._quota_bytes or least_bytes <= self._quota_bytes // 2
        return Filling(self._store, layer_digest, self._space, alive=fits)

    @asynccontextmanager
    async def named_lock(self, name: str) -> AsyncIterator[None]:
        """A lock among all tasks and processes that use this cache, for pulls and compiles.

        Where the disk is full, or read only, or whoever has it is stopped, there is none: then work is done
        twice, and wrong it is not.

        Raises:
            CacheError: on entry: the name is no plain file name, or the lock's file cannot be made.
        """
        lock = named_lock(self.root / "locks", name)
        try:
            await lock.__aenter__()
        except CacheError as error:
            cause = error.__cause__
            if isinstance(error, CacheBusy):
                _log.warning("%s; going on without it", error)
            elif not isinstance(cause, OSError) or cause.errno not in NO_ROOM | NO_WRITING:
                raise
            yield
            return
        try:
            yield
        finally:
            await lock.__aexit__(None, None, None)

    def ls(self) -> list[EntryInfo]:
        """The layer entries, as their files show them."""
        pinned = self.catalogue.pinned_layers()
        entries = list_entries(self.root / "layers")
        return [replace(entry, pinned=entry.layer_digest in pinned) for entry in entries]

    def info(self, layer_digest: str, toc_digest: str) -> EntryInfo | None:
        """What the files of one entry show; None if there is none.

        Raises:
            FormatError: not sha256 digests.
        """
        path = self._store.path(layer_digest, toc_digest)
        with suppress(OSError):
            return describe_entry(path)
        return None

    @property
    def quota_bytes(self) -> int:
        """How much disk it may take; 0 for any amount."""
        return self._quota_bytes

    def usage(self) -> Usage:
        """How much disk everything takes. Walks the directory."""
        return measure(self.root)

    def spans(self, layer_digest: str, toc_digest: str) -> SpanTable | None:
        """The span table of a layer under a table of contents; None if that is not here, or damaged."""
        return load_spans(self.tocs, layer_digest, toc_digest)

    def verify(self, *, repair: bool = False) -> Iterator[EntryCheck]:
        """Re-hashes every span of every entry; see `check_entry`.

        Args:
            repair: forget what does not match or cannot be checked.

        Raises:
            CacheError: an entry cannot be opened, or the disk fails.
        """
        for info in self.ls():
            spans = self.spans(info.layer_digest, info.toc_digest)
            if spans is None:
                yield EntryCheck(info.layer_digest, info.toc_digest, without_toc=True)
                continue
            size = max(info.size, spans.uncompressed_size)
            with self.layer(info.layer_digest, info.toc_digest, size, spans.leaves) as entry:
                yield check_entry(entry, spans, info.layer_digest, info.toc_digest, repair=repair)
