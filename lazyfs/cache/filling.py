"""A layer's entry that is filled front to back while its table of contents is still being made."""

import logging
import os
from contextlib import ExitStack
from typing import Self

from indexer.digest import LEAF_SIZE
from lazyfs.cache.entry_files import ABSENT, PRESENT, Geometry, State, fill_directory
from lazyfs.cache.files import FILE_MODE, cache_errors, write_sparse
from lazyfs.cache.layer_store import LayerStore
from lazyfs.cache.room import Admission
from lazyfs.errors import CacheError
from lazyfs.flock import directory_locked

_log = logging.getLogger(__name__)


class Filling:
    """The first pull of a layer: its uncompressed bytes go here while they pass by.

    Nobody else sees them before `commit`. A full disk is no error: the filling gives up, and the pull goes
    on without it. For one thread at a time; blocks for writes.
    """

    def __init__(self, store: LayerStore, layer_digest: str, space: Admission, *, alive: bool = True) -> None:
        self._store = store
        self._layer_digest = layer_digest
        self._space = space
        self._written = 0
        self._alive = alive
        self._life = ExitStack()
        if not alive:
            return
        try:
            self._directory, self._path = self._life.enter_context(store.scratch.directory())
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            self._data = os.open("data", flags, FILE_MODE, dir_fd=self._directory)
            self._life.callback(os.close, self._data)
        except OSError:
            self._give_up()

    def __repr__(self) -> str:
        return f"<Filling {self._layer_digest[:19]}, {self._written} bytes{'' if self._alive else ', over'}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    @property
    def alive(self) -> bool:
        """Whether it is still being filled: neither committed nor discarded, and the disk was never full."""
        return self._alive

    @property
    def written(self) -> int:
        """How many bytes have come."""
        return self._written

    def write(self, start: int, data: bytes) -> None:
        """Takes the bytes at uncompressed offset `start`, which follow the last. Does nothing once over.

        Raises:
            CacheError: they do not follow.
        """
        if not self._alive:
            return
        if start != self._written:
            raise CacheError(f"a layer's bytes come in order: expected those at {self._written}, got {start}")
        try:
            if not self._space.admits(len(data)):
                self._give_up()
                return
            write_sparse(self._data, data, start)
        except OSError:
            self._space.exhausted()
            self._give_up()
            return
        self._written += len(data)

    def commit(self, toc_digest: str, size: int, leaf_count: int) -> bool:
        """Makes this the layer's entry under a table of contents that all its bytes were checked against.

        A complete entry that is there already stays; one with gaps is replaced, and who has it open keeps it
        until closing. All leaves count as present, and outlast a power cut after the first `LayerEntry.sync`.

        Args:
            toc_digest: digest of the table of contents.
            size: bytes of the device, tail included.
            leaf_count: leaves of all spans.

        Returns:
            Whether there is a complete entry now; False also if this was over before.

        Raises:
            CacheError: that many bytes cannot be such a layer.
        """
        if not self._alive:
            return False
        if self._written > min(size, leaf_count * LEAF_SIZE):
            raise CacheError(f"{self._written} bytes are no layer of {leaf_count} leaves and {size} bytes")
        try:
            self._install(toc_digest, Geometry(size, leaf_count))
        except TimeoutError as error:
            _log.warning("layer %s is not kept: %s (%s)", self._layer_digest, error.strerror, error.filename)
            return False
        except OSError:
            self._space.exhausted()
            return False
        finally:
            self.discard()
        return True

    def _install(self, toc_digest: str, geometry: Geometry) -> None:
        store = self._store
        path = store.path(self._layer_digest, toc_digest)
        fill_directory(self._directory, State(store.boot_id, *geometry), PRESENT)
        with directory_locked(store.layers):
            existing = store.find(path, geometry)
            complete = existing is not None and existing.marks.find(ABSENT, 0, geometry.leaves) < 0
            if existing is None or not (complete and store.trusts(existing)):
                store.install(self._path, path)

    def discard(self) -> None:
        """Removes what was written, unless it was committed. Again and again is no error."""
        with cache_errors("remove an unfinished layer"):
            self._give_up()

    def _give_up(self) -> None:
        self._alive = False
        self._life.close()
