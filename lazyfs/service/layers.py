"""The layers that mounted chains read, each once, whatever images they were found in.

What makes two layers one is their digest and that of the table they are read by. Each is a file of the forest
for as long as a chain needs it, or the kernel has it open: containers go on reading a tree that is unmounted.
Files of a daemon before us are shown again under their numbers, for as long as the kernel has them open.
"""

import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import trio
from msgspec import Struct
from msgspec.structs import replace

from indexer.boot_pack import PackLayer
from indexer.errors import IndexerError
from lazyfs.cache.cache import Cache
from lazyfs.errors import LazyfsError, NotFound
from lazyfs.exit_codes import message_of
from lazyfs.image.auditing.auditor import Auditor, Case
from lazyfs.image.image import map_metadata
from lazyfs.image.indexes.indexing import IndexedLayer, load_index
from lazyfs.image.reading.completion import complete
from lazyfs.image.reading.fetcher import FetchSettings
from lazyfs.image.reading.layer import LazyLayer
from lazyfs.image.reading.opening import open_layer
from lazyfs.image.reading.reads import Reads, reads_of, sum_of
from lazyfs.image.reading.traffic import Purpose, WaitTally
from lazyfs.image.tasks import open_tasks
from lazyfs.mount.contents import LayerReader
from lazyfs.mount.erofs import LocalFile, opened_metadata
from lazyfs.mount.forest import Forest, VirtualFile
from lazyfs.oci.chain import ChainOrder
from lazyfs.oci.config import ImageLayer
from lazyfs.service.images import Images
from lazyfs.service.ledger import SavedFile, path_saved
from lazyfs.service.pool import Pool
from lazyfs.service.returning import Returning

_log = logging.getLogger(__name__)

_IDLE_S: Final = 10.0
_SYNC_EVERY_S: Final = 30.0
_TRY_AGAIN_S: Final = 10.0


class ShownLayer(Struct, frozen=True):
    """A layer in the forest.

    Attributes:
        names: its digests.
        inode: its number there.
        lazy: its bytes.
        auditor: watches over its table.
        mounted: to be set once it is read by a mount: then the rest of it may be brought in the background.
        indexed: its index.
        waits: its reads that had to wait.
    """

    names: PackLayer
    inode: int
    lazy: LazyLayer
    auditor: Auditor
    mounted: trio.Event
    indexed: IndexedLayer
    waits: WaitTally


class ShownMetadata(Struct, frozen=True):
    """A metadata image in the forest.

    Attributes:
        inode: its number there.
        reader: its bytes.
    """

    inode: int
    reader: LayerReader


class Layers:
    """Open layers, and the metadata images of trees, in one forest.

    Args:
        nursery: where they live.
        forest: shows them.
        images: where they are from.
        cache: where they are kept.
        settings: how missing bytes are fetched.
        changed: called whenever `saved` changes.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        forest: Forest,
        images: Images,
        cache: Cache,
        settings: FetchSettings,
        changed: Callable[[], None],
    ) -> None:
        self._nursery = nursery
        self._forest = forest
        self._images = images
        self._cache = cache
        self._settings = settings
        self._changed = changed
        self._layers: Pool[PackLayer, ShownLayer] = Pool(nursery, _IDLE_S)
        self._metadata: Pool[Path, ShownMetadata] = Pool(nursery, _IDLE_S)
        self._files: dict[int, SavedFile] = {}
        self._past = Reads()  # of layers that are closed

    def __repr__(self) -> str:
        return f"<Layers {self._layers!r} in {self._forest!r}>"

    def shown(self, names: PackLayer) -> ShownLayer | None:
        """The one with these digests, if it is open now."""
        return self._layers.get(names)

    def open_layers(self) -> list[LazyLayer]:
        """Those that are open now."""
        return [shown.lazy for shown in self._layers.open_values()]

    def reads(self) -> Reads:
        """What was read so far, also of layers that are closed."""
        return sum_of([self._past, *map(reads_of, self.open_layers())])

    def saved(self) -> tuple[SavedFile, ...]:
        """The forest's files, for the next daemon."""
        return tuple(self._files.values())

    def lease(
        self, order: ChainOrder, layer: ImageLayer, indexed: IndexedLayer
    ) -> AbstractAsyncContextManager[ShownLayer]:
        """A layer, in the forest for as long as the block lasts, or the kernel has its file open.

        Args:
            order: an image that has the layer, where its bytes come from if it is not open yet.
            layer: what the image says of it.
            indexed: its index.

        Raises:
            IndexerError: its table is damaged.
            LazyfsError: the cache, or the image, cannot be used.
        """
        names = PackLayer(layer.descriptor.digest, indexed.head.digest)
        return self._layers.lease(names, partial(self._opened, names, order, layer, indexed))

    @asynccontextmanager
    async def lease_all(
        self, order: ChainOrder, layers: Iterable[ImageLayer], indexed: Mapping[str, IndexedLayer]
    ) -> AsyncIterator[tuple[ShownLayer, ...]]:
        """As `lease`, of several layers, whose indexes are given by their digests."""
        async with AsyncExitStack() as stack:
            leases = [self.lease(order, layer, indexed[layer.descriptor.digest]) for layer in layers]
            yield tuple([await stack.enter_async_context(lease) for lease in leases])

    def lease_metadata(self, path: Path) -> AbstractAsyncContextManager[ShownMetadata]:
        """A metadata image, in the forest for as long as for `lease`.

        Raises:
            MountError: it cannot be opened.
            FormatError: it is damaged.
        """
        return self._metadata.lease(path, partial(self._opened_metadata, path))

    def put_back(self, saved: SavedFile) -> None:
        """Show a file of a daemon before us, as soon as it can be opened again; its readers wait."""
        returning = Returning(saved.opens)
        self._forest.put_back(saved.inode, self._counted(saved, returning, returning.count))
        self._files[saved.inode] = saved
        self._nursery.start_soon(self._bring_back, saved, returning)

    # Showing

    @asynccontextmanager
    async def _opened(
        self, names: PackLayer, order: ChainOrder, layer: ImageLayer, indexed: IndexedLayer
    ) -> AsyncIterator[ShownLayer]:
        async with self._images.lease(order) as image:
            blob = image.workshop.source.blob(layer.descriptor)
            waits = WaitTally()
            async with (
                open_layer(indexed, blob, self._cache, self._settings, waits) as lazy,
                open_tasks() as tasks,
            ):
                auditor = Auditor([Case(layer, indexed, lazy)], self._cache)
                tasks.start_soon(auditor.run)
                tasks.start_soon(_sync_now_and_then, lazy)
                mounted = trio.Event()
                if image.workshop.config.background != "off":
                    tasks.start_soon(_complete_when_mounted, lazy, mounted)
                file = SavedFile(0, indexed.head.header.device_size, 0, *names, order)
                inode = self._show(file, lazy, partial(self._layers.count, names))
                try:
                    yield ShownLayer(names, inode, lazy, auditor, mounted, indexed, waits)
                finally:
                    self._past = sum_of([self._past, reads_of(lazy)])
                    self._hide(inode)
                    tasks.cancel_scope.cancel()

    @asynccontextmanager
    async def _opened_metadata(self, path: Path) -> AsyncIterator[ShownMetadata]:
        with opened_metadata(path) as descriptor:
            size = map_metadata(path).size
            reader = LocalFile(descriptor)
            file = SavedFile(0, size, 0, path=path_saved(path))
            inode = self._show(file, reader, partial(self._metadata.count, path))
            try:
                yield ShownMetadata(inode, reader)
            finally:
                self._hide(inode)

    def _show(self, file: SavedFile, reader: LayerReader, users: Callable[[int], None]) -> int:
        numbered = replace(file, inode=self._forest.last + 1)
        inode = self._forest.add(self._counted(numbered, reader, users))
        assert inode == numbered.inode
        self._files[inode] = numbered
        self._changed()
        return inode

    def _hide(self, inode: int) -> None:
        self._forest.remove(inode)
        del self._files[inode]
        self._changed()

    def _counted(self, file: SavedFile, reader: LayerReader, users: Callable[[int], None]) -> VirtualFile:
        def count(change: int) -> None:
            opens = self._files[file.inode].opens + change
            self._files[file.inode] = replace(self._files[file.inode], opens=max(opens, 0))
            self._changed()
            if opens >= 0:  # else somebody closed what was opened before it was written down
                users(change)

        return VirtualFile(reader, file.size, count)

    # Coming back

    async def _bring_back(self, saved: SavedFile, returning: Returning) -> None:
        """Have a file read again, until nobody has it open."""
        while returning.opens > 0:
            try:
                async with self._reader_of(saved) as reader:
                    returning.become(reader)
                    await returning.wait_closed()
            except (IndexerError, LazyfsError) as error:
                returning.fail(error)
                _log.warning(
                    "layer %s cannot be read again yet: %s", saved.layer or saved.path, message_of(error)
                )
                with trio.move_on_after(_TRY_AGAIN_S):
                    await returning.wait_closed()
        self._hide(saved.inode)

    @asynccontextmanager
    async def _reader_of(self, saved: SavedFile) -> AsyncIterator[LayerReader]:
        if saved.order is None:
            if not saved.path:
                raise NotFound("the metadata image was kept in the memory of the daemon before")
            async with self.lease_metadata(Path(saved.path)) as metadata:
                yield metadata.reader
        else:
            async with self.lease_again(saved.order, saved.layer, saved.toc) as shown:
                yield shown.lazy

    @asynccontextmanager
    async def lease_again(
        self, order: ChainOrder, layer_digest: str, toc_digest: str
    ) -> AsyncIterator[ShownLayer]:
        """As `lease`, of a layer that was read before, by the table of that digest.

        Raises:
            NotFound: the image has no such layer, or the table is gone.
            IndexerError, LazyfsError: as for `lease`.
        """
        async with self._images.lease(order) as image:
            layers = {layer.descriptor.digest: layer for layer in image.resolved.layers}
            if layer_digest not in layers:
                raise NotFound(f"{order.image} has no layer {layer_digest}")
            layer = layers[layer_digest]
            indexed = image.indexed.get(layer_digest)
            if indexed is None or indexed.head.digest != toc_digest:
                indexed = await trio.to_thread.run_sync(self._kept, layer, toc_digest)
        async with self.lease(order, layer, indexed) as shown:
            shown.mounted.set()
            yield shown

    def _kept(self, layer: ImageLayer, toc_digest: str) -> IndexedLayer:
        """The index of this digest, which is none that would be found now."""
        for name in self._cache.tocs.names(layer.descriptor.digest):
            found = load_index(self._cache, layer.descriptor, name)
            if found is not None and found.head.digest == toc_digest:
                return found
        raise NotFound(f"the index {toc_digest} of layer {layer.descriptor.digest} is gone")


async def _complete_when_mounted(lazy: LazyLayer, mounted: trio.Event) -> None:
    await mounted.wait()
    await complete(lazy, Purpose.BACKGROUND)


async def _sync_now_and_then(lazy: LazyLayer) -> None:
    """Power cuts lose at most the last half minute of what was fetched."""
    while True:
        await trio.sleep(_SYNC_EVERY_S)
        await trio.to_thread.run_sync(lazy.sync)
