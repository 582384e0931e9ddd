"""The cache directory and everything in it, opened once and handed down."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from typing import Final

from indexer.toc import SpanTable
from lazyfs.cache.checking import EntryCheck, check_entry
from lazyfs.cache.documents import Documents
from lazyfs.cache.entry_files import Geometry, LayerStore
from lazyfs.cache.files import cache_errors, is_at
from lazyfs.cache.filling import Filling
from lazyfs.cache.free_space import FreeSpace
from lazyfs.cache.images import Images
from lazyfs.cache.inventory import EntryInfo, Usage, describe_entry, list_entries, measure
from lazyfs.cache.layer_entry import LayerEntry
from lazyfs.cache.locks import named_lock, try_flock
from lazyfs.cache.quarantine import Quarantine
from lazyfs.cache.references import References
from lazyfs.cache.root import open_root
from lazyfs.cache.scratch import Scratch
from lazyfs.cache.shelf import Shelf
from lazyfs.cache.tocs import Tocs

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class Cache:
    """One cache directory, shared by any number of processes of one user.

    Args:
        path: the directory; made private if it is new or empty.
        boot_id: of this boot; by default the kernel's.
        free_floor_bytes: below so many free bytes no layer data is written.

    Attributes:
        root: the directory, without symlinks.
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

    def __init__(self, path: Path, *, boot_id: str | None = None, free_floor_bytes: int = 0) -> None:
        self.root = open_root(path)
        with cache_errors("open the cache"):
            boot_id = boot_id or _BOOT_ID.read_text("ascii").strip()
            scratch = Scratch(self.root / "tmp")
            scratch.sweep()
        self._scratch = scratch
        self._space = FreeSpace(self.root, free_floor_bytes)
        self._store = LayerStore(self.root / "layers", scratch, boot_id)
        self.documents = Documents(self.root / "documents", scratch)
        self.references = References(self.root / "references", scratch)
        self.tocs = Tocs(self.root / "tocs", scratch)
        self.images = Images(self.root / "images", scratch)
        self.quarantine = Quarantine(self.root / "quarantine", scratch)
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
        return LayerEntry(self._store, path, Geometry(size, leaf_count), self._space)

    def fill(self, layer_digest: str) -> Filling:
        """A new entry to fill while the layer's table of contents is being made."""
        return Filling(self._store, layer_digest, self._space)

    def named_lock(self, name: str) -> AbstractAsyncContextManager[None]:
        """A lock among all tasks and processes that use this cache, for pulls and compiles.

        Raises:
            CacheError: on entry: the name is no plain file name, or the lock's file cannot be made.
        """
        return named_lock(self.root / "locks", name)

    def ls(self) -> list[EntryInfo]:
        """The layer entries, as their files show them."""
        return list(list_entries(self.root / "layers"))

    def info(self, layer_digest: str, toc_digest: str) -> EntryInfo | None:
        """What the files of one entry show; None if there is none.

        Raises:
            FormatError: not sha256 digests.
        """
        path = self._store.path(layer_digest, toc_digest)
        with suppress(OSError):
            return describe_entry(path)
        return None

    def usage(self) -> Usage:
        """How much disk everything takes. Walks the directory."""
        return measure(self.root)

    def verify(
        self, load_spans: Callable[[str, str], SpanTable | None], *, repair: bool = False
    ) -> Iterator[EntryCheck]:
        """Re-hashes every span of every entry; see `check_entry`.

        Args:
            load_spans: the span table for a layer digest and a digest of a table of contents; None if it is
                not known.
            repair: forget what does not match or cannot be checked.

        Raises:
            CacheError: an entry cannot be opened, or the disk fails.
        """
        for info in self.ls():
            spans = load_spans(info.layer_digest, info.toc_digest)
            if spans is None:
                yield EntryCheck(info.layer_digest, info.toc_digest, without_toc=True)
                continue
            size = max(info.size, spans.uncompressed_size)
            with self.layer(info.layer_digest, info.toc_digest, size, spans.leaves) as entry:
                yield check_entry(entry, spans, info.layer_digest, info.toc_digest, repair=repair)

    def remove_layer(self, layer_digest: str, toc_digest: str) -> bool:
        """Removes an entry; False, and nothing happens, while anybody has it open.

        Raises:
            FormatError: not sha256 digests.
            CacheError: the disk fails.
        """
        path = self._store.path(layer_digest, toc_digest)
        with cache_errors("remove a layer's cache entry"):
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            except FileNotFoundError:
                return True
            try:
                if not (try_flock(descriptor) and is_at(descriptor, path)):
                    return False
                self._scratch.discard(path)
            finally:
                os.close(descriptor)
            return True
