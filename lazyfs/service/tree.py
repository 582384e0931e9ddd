"""What a chain is mounted from, whatever the driver: its metadata image and its layers, open."""

import logging
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from pathlib import Path

from msgspec import Struct

from indexer.boot_pack import PackLayer
from indexer.digest import digest_hex
from indexer.errors import IndexerError
from lazyfs.cache.cache import Cache
from lazyfs.errors import LazyfsError
from lazyfs.exit_codes import message_of
from lazyfs.image.boot.hastening import hasten, starts_by_pack
from lazyfs.image.boot.start import Boot
from lazyfs.image.image import map_metadata
from lazyfs.image.indexes.compiling import Compile, compiled, compiled_alone, note
from lazyfs.image.indexes.gathering import indexed_tree
from lazyfs.image.indexes.indexing import IndexedLayer
from lazyfs.image.reading.completion import wait_much_read
from lazyfs.image.reading.layer import LazyLayer
from lazyfs.image.resolve import ResolvedImage
from lazyfs.image.tasks import background_tasks
from lazyfs.mount.tuning import DEFAULT_READ_AHEAD_KB, START_READ_AHEAD_KB, ReadAheadKnob
from lazyfs.oci.chain import ChainOrder, chain_name
from lazyfs.service.images import Images, OpenImage
from lazyfs.service.layers import Layers, ShownLayer
from lazyfs.service.starts import Starts

_log = logging.getLogger(__name__)


class OpenTree(Struct, frozen=True):
    """A tree.

    Attributes:
        metadata_file: its metadata image.
        layers: its layers, as the metadata image counts them.
        digests: of each layer, and of the table that it is read by.
        read_ahead_kb: how far the kernel may read ahead, at first.
        knob: is to be told where that is turned.
    """

    metadata_file: Path
    layers: tuple[ShownLayer, ...]
    digests: tuple[tuple[str, str], ...]
    read_ahead_kb: int
    knob: ReadAheadKnob


class Trees:
    """Opens trees.

    Args:
        images: where layers are from.
        layers: opens them.
        starts: hastens them.
        cache: where metadata images are kept.
    """

    def __init__(self, images: Images, layers: Layers, starts: Starts, cache: Cache) -> None:
        self._starts = starts
        self._images = images
        self._layers = layers
        self._cache = cache
        self._warm: dict[str, list[Callable[[], None]]] = {}

    def warm(self, name: str) -> None:
        """Have the disk read what the last user of a chain's tree has read, if it is open still."""
        if warmers := self._warm.get(name):
            warmers[-1]()

    async def open(self, order: ChainOrder, stack: AsyncExitStack) -> OpenTree:
        """The tree of the ordered layers, for as long as the stack stands.

        Raises:
            IndexerError: something of it is damaged.
            LazyfsError: something of it cannot be had.
        """
        opened = await stack.enter_async_context(self._images.lease(order))
        open_ordered = self._open_alone if order.alone else self._open_merged
        return await open_ordered(order, opened, stack)

    async def _open_merged(self, order: ChainOrder, opened: OpenImage, stack: AsyncExitStack) -> OpenTree:
        """That of all ordered layers."""
        resolved = opened.lowest(order)
        indexed, metadata_file = await self._indexed(opened, resolved, compiled)
        shown = await stack.enter_async_context(self._layers.lease_all(order, resolved.layers, indexed))
        layers = {layer.names: layer.lazy for layer in shown}
        whole = len(resolved.layers) == len(opened.resolved.layers)  # as is what a boot pack is of
        boot = await self._boot(order, layers, stack) if whole else None
        hastened = await hasten(stack, resolved, layers, metadata_file, self._cache, boot)
        for layer in shown:
            layer.mounted.set()
        name = chain_name([layer.names.layer_digest for layer in shown])
        self._until_closed(name, hastened.warm, stack)
        return await _open_tree(metadata_file, shown, hastened.packed, stack)

    async def _open_alone(self, order: ChainOrder, opened: OpenImage, stack: AsyncExitStack) -> OpenTree:
        """That of the topmost layer; its image's start is hastened by whoever has it pulled."""
        resolved = opened.lowest(order)
        indexed, metadata_file = await self._indexed(opened, resolved, compiled_alone)
        if not opened.missing:  # the whole image leads to each of its layers alone
            await note(opened.resolved, opened.indexed, self._cache)
        names = [device.tag.decode() for device in map_metadata(metadata_file).devices]
        by_name = {digest_hex(layer.descriptor.digest): layer for layer in resolved.layers}
        layers = [by_name[name] for name in names]
        shown = await stack.enter_async_context(self._layers.lease_all(order, layers, indexed))
        for layer in shown:
            layer.mounted.set()
        boot = await self._boot(order, {layer.names: layer.lazy for layer in shown}, stack)
        packed = await starts_by_pack(boot, [layer.lazy for layer in shown])
        return await _open_tree(metadata_file, shown, packed, stack)

    async def _boot(
        self, order: ChainOrder, layers: Iterable[PackLayer], stack: AsyncExitStack
    ) -> Boot | None:
        try:
            boot = await stack.enter_async_context(self._starts.lease(order))
        except (IndexerError, LazyfsError) as error:  # of tables that this tree may do without
            _log.info("%s is not hastened: %s", order.image, message_of(error))
            return None
        return boot if boot is not None and boot.serves(layers) else None

    def _until_closed(self, name: str, warm: Callable[[], None], stack: AsyncExitStack) -> None:
        warmers = self._warm.setdefault(name, [])
        warmers.append(warm)

        def forget() -> None:
            warmers.remove(warm)
            if not warmers:
                self._warm.pop(name, None)

        stack.callback(forget)

    async def _indexed(
        self, opened: OpenImage, resolved: ResolvedImage, compile_tree: Compile
    ) -> tuple[dict[str, IndexedLayer], Path]:
        """The layers' indexes, and their tree; indexes that are gone by now are made."""
        digests = {layer.descriptor.digest for layer in resolved.layers}
        known = {digest: index for digest, index in opened.indexed.items() if digest in digests}
        here = known if known.keys() == digests else None
        shop = opened.workshop
        return await indexed_tree(
            resolved, shop.source, shop.indexer, self._cache, shop.finders, here, compile_tree
        )


async def _open_tree(
    metadata_file: Path, shown: tuple[ShownLayer, ...], packed: bool, stack: AsyncExitStack
) -> OpenTree:
    """A tree of open layers, which the kernel reads little ahead as long as its start comes by a pack."""
    read_ahead_kb = START_READ_AHEAD_KB if packed else DEFAULT_READ_AHEAD_KB
    knob = ReadAheadKnob()
    if packed:
        tasks = await stack.enter_async_context(background_tasks())
        lazies = {layer.names: layer.lazy for layer in shown}
        tasks.start_soon(_read_ahead_when_much_is_read, lazies.values(), knob)
    return OpenTree(metadata_file, shown, tuple(layer.names for layer in shown), read_ahead_kb, knob)


async def _read_ahead_when_much_is_read(layers: Iterable[LazyLayer], knob: ReadAheadKnob) -> None:
    """Whoever reads so much is no start any more: the rest comes anyway."""
    await wait_much_read(layers)
    knob.turn(DEFAULT_READ_AHEAD_KB)
