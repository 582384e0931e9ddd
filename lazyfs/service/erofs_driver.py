"""The `erofs` driver of the daemon: a forest that shows the layers, and an EROFS mount for each chain."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import trio

from lazyfs.cache.cache import Cache
from lazyfs.image.image import compiled, index_layers
from lazyfs.image.indexing import IndexedLayer
from lazyfs.image.resolve import ResolvedImage
from lazyfs.mount.forest_mount import Trunks, mount_from_forest, take_down
from lazyfs.mount.fuse_mount import MountOptions
from lazyfs.oci.chain import ChainOrder
from lazyfs.service.chains import NoteDevices
from lazyfs.service.images import Images, OpenImage
from lazyfs.service.layers import Layers


class ErofsDriver:
    """A `chains.Driver`.

    Args:
        images: where the layers are from.
        layers: the layers, in their forest.
        forest_directory: where that is shown.
        cache: where metadata images are kept.
    """

    name = "erofs"

    def __init__(self, images: Images, layers: Layers, forest_directory: Path, cache: Cache) -> None:
        self._images = images
        self._layers = layers
        self._forest_directory = forest_directory
        self._cache = cache

    @asynccontextmanager
    async def mounted(self, order: ChainOrder, mount_point: Path, note: NoteDevices) -> AsyncIterator[None]:
        """As Driver.mounted says."""
        options = MountOptions(order.image, allow_other=True, setuid=True, devices=True)
        async with AsyncExitStack() as stack:
            trunks = await self._leased(order, stack)
            await note(trunks.devices)
            try:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(_mount, trunks, mount_point, options)
                yield
            finally:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(_unmount, mount_point)

    @asynccontextmanager
    async def adopted(self, mount_point: Path) -> AsyncIterator[None]:
        """As Driver.adopted says. The kernel has the files open, and so they are shown."""
        try:
            yield
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(_unmount, mount_point)

    async def _leased(self, order: ChainOrder, stack: AsyncExitStack) -> Trunks:
        """What the tree is mounted from, for as long as the stack stands."""
        async with self._images.lease(order) as opened:
            resolved = opened.lowest(order)
            indexed = await _indexes(opened, resolved)
            metadata_file = await compiled(resolved, indexed, self._cache)
            metadata = await stack.enter_async_context(self._layers.lease_metadata(metadata_file))
            devices = []
            for layer in resolved.layers:
                lease = self._layers.lease(order, layer, indexed[layer.descriptor.digest])
                devices.append((await stack.enter_async_context(lease)).inode)
            return Trunks(self._forest_directory, metadata_file, metadata.inode, devices)


async def _indexes(opened: OpenImage, resolved: ResolvedImage) -> dict[str, IndexedLayer]:
    """The layers' indexes; those that are gone since somebody asked for them are made."""
    digests = {layer.descriptor.digest for layer in resolved.layers}
    if digests <= opened.indexed.keys():
        return {digest: opened.indexed[digest] for digest in digests}
    workshop = opened.workshop
    return await index_layers(resolved, workshop.source, workshop.indexer, workshop.finders)


def _mount(trunks: Trunks, mount_point: Path, options: MountOptions) -> None:
    mount_point.mkdir(mode=0o700, exist_ok=True)
    mount_from_forest(trunks, mount_point, options)


def _unmount(mount_point: Path) -> None:
    take_down(mount_point)
    mount_point.rmdir()
