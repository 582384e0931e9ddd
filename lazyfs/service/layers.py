"""The layers that mounted chains read, each once, whatever images they were found in.

What makes two layers one is their digest and that of the table they are read by. Each is a file of the forest
for as long as a chain needs it, or the kernel has it open: containers go on reading a tree that is unmounted.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import trio

from lazyfs.cache.cache import Cache
from lazyfs.image.auditor import Auditor, Case
from lazyfs.image.fetcher import FetchSettings
from lazyfs.image.image import map_metadata, open_layer
from lazyfs.image.indexing import IndexedLayer
from lazyfs.image.layer import LayerStatistics, LazyLayer
from lazyfs.image.tasks import open_tasks
from lazyfs.mount.erofs import LocalFile, opened_metadata
from lazyfs.mount.forest import Forest, VirtualFile
from lazyfs.oci.config import ImageLayer
from lazyfs.service.images import LeaseImage
from lazyfs.service.pool import Pool

_IDLE_S: Final = 10.0
_SYNC_EVERY_S: Final = 30.0


class LayerKey(NamedTuple):
    """What makes a layer another one, for us."""

    layer_digest: str
    toc_digest: str


@dataclass(frozen=True, slots=True)
class OpenLayer:
    """A layer in the forest.

    Attributes:
        inode: its number there.
        lazy: its bytes.
        auditor: watches over its table.
    """

    inode: int
    lazy: LazyLayer
    auditor: Auditor

    def statistics(self) -> LayerStatistics:
        """Counts so far."""
        return self.lazy.statistics()


class Layers:
    """Open layers, and the metadata images of trees, in one forest.

    Args:
        nursery: where they live.
        forest: shows them.
        cache: where they are kept.
        settings: how missing bytes are fetched.
    """

    def __init__(self, nursery: trio.Nursery, forest: Forest, cache: Cache, settings: FetchSettings) -> None:
        self._forest = forest
        self._cache = cache
        self._settings = settings
        self._layers: Pool[LayerKey, OpenLayer] = Pool(nursery, _IDLE_S)
        self._metadata: Pool[Path, int] = Pool(nursery, _IDLE_S)

    def __repr__(self) -> str:
        return f"<Layers {self._layers!r} in {self._forest!r}>"

    def open_layers(self) -> list[OpenLayer]:
        """Those that are open now."""
        return self._layers.open_values()

    def lease(
        self, layer: ImageLayer, indexed: IndexedLayer, image: LeaseImage
    ) -> AbstractAsyncContextManager[OpenLayer]:
        """A layer, in the forest for as long as the block lasts, or the kernel has its file open.

        Args:
            layer: what its image says of it.
            indexed: its index.
            image: where its bytes are, if it is not open yet.

        Raises:
            IndexerError: its table is damaged.
            LazyfsError: the cache, or the image, cannot be used.
        """
        key = LayerKey(layer.descriptor.digest, indexed.head.digest)
        return self._layers.lease(key, partial(self._opened, key, layer, indexed, image))

    def lease_metadata(self, path: Path) -> AbstractAsyncContextManager[int]:
        """The number of the forest's file that shows a metadata image, for as long as for `lease`.

        Raises:
            MountError: it cannot be opened.
            FormatError: it is damaged.
        """
        return self._metadata.lease(path, partial(self._opened_metadata, path))

    @asynccontextmanager
    async def _opened(
        self, key: LayerKey, layer: ImageLayer, indexed: IndexedLayer, image: LeaseImage
    ) -> AsyncIterator[OpenLayer]:
        async with image() as opened:
            blob = opened.workshop.source.blob(layer.descriptor)
            async with open_layer(indexed, blob, self._cache, self._settings) as lazy, open_tasks() as tasks:
                size = indexed.head.header.device_size
                auditor = Auditor([Case(layer, indexed, lazy)], self._cache)
                inode = self._forest.add(VirtualFile(lazy, size, partial(self._layers.count, key)))
                try:
                    tasks.start_soon(auditor.run)
                    tasks.start_soon(_sync_now_and_then, lazy)
                    yield OpenLayer(inode, lazy, auditor)
                finally:
                    self._forest.remove(inode)
                    tasks.cancel_scope.cancel()

    @asynccontextmanager
    async def _opened_metadata(self, path: Path) -> AsyncIterator[int]:
        size = map_metadata(path).size
        with opened_metadata(path) as descriptor:
            users = partial(self._metadata.count, path)
            inode = self._forest.add(VirtualFile(LocalFile(descriptor), size, users))
            try:
                yield inode
            finally:
                self._forest.remove(inode)


async def _sync_now_and_then(lazy: LazyLayer) -> None:
    """Power cuts lose at most the last half minute of what was fetched."""
    while True:
        await trio.sleep(_SYNC_EVERY_S)
        await trio.to_thread.run_sync(lazy.sync)
