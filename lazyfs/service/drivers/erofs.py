"""The `erofs` driver of the daemon: a forest that shows the layers, and an EROFS mount for each chain."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import trio

from lazyfs.mount.forest_mount import Trunks, mount_from_forest
from lazyfs.mount.fuse_mount import MountOptions
from lazyfs.service.chains import NoteDevices, make_mount_point, unmounted_at_end
from lazyfs.service.layers import Layers
from lazyfs.service.ledger import Entry
from lazyfs.service.tree import Trees


class ErofsDriver:
    """A `chains.Driver`.

    Args:
        trees: opens what is mounted.
        layers: shows it in the forest.
        forest_directory: where that is.
    """

    def __init__(self, trees: Trees, layers: Layers, forest_directory: Path) -> None:
        self._trees = trees
        self._layers = layers
        self._forest_directory = forest_directory

    @asynccontextmanager
    async def mounted(self, entry: Entry, mount_point: Path, note: NoteDevices) -> AsyncIterator[str]:
        """As Driver.mounted says."""
        async with AsyncExitStack() as stack:
            tree = await self._trees.open(entry.order, stack)
            options = MountOptions(
                entry.order.image,
                setuid=True,
                devices=True,
                read_ahead_kb=tree.read_ahead_kb,
                knob=tree.knob,
            )
            metadata = await stack.enter_async_context(self._layers.lease_metadata(tree.metadata_file))
            devices = [layer.inode for layer in tree.layers]
            trunks = Trunks(self._forest_directory, tree.metadata_file, metadata.inode, devices)
            await note(devices)
            async with unmounted_at_end(mount_point, "erofs") as driver:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(_mount, trunks, mount_point, options)
                yield driver


def _mount(trunks: Trunks, mount_point: Path, options: MountOptions) -> None:
    make_mount_point(mount_point)
    mount_from_forest(trunks, mount_point, options)
