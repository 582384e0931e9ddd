"""Layers for Podman and CRI-O: found in the images that they ask about, mounted alone, counted.

A layer that is used stays what it was found as, whatever becomes of the image's tag: its mount's order, which
outlives us, names the manifest.
"""

import logging
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

import trio

from indexer.errors import IndexerError, Unsupported
from indexer.toc import AddressSpace
from lazyfs.errors import LazyfsError, NotFound
from lazyfs.exit_codes import message_of
from lazyfs.oci.chain import ChainOrder, chain_name
from lazyfs.oci.config import ImageLayer
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.storage_layer import claimed_size, storage_layer, toc_digests
from lazyfs.service.chains import Chains
from lazyfs.service.images import Images, OpenImage
from lazyfs.service.raw_blobs import RawBlobs
from lazyfs.service.starts import Starts

_log = logging.getLogger(__name__)

_UNUSED_S: Final = 60.0
_LOOK_AGAIN_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class LazyStoredLayer:
    """A `StoredLayer`.

    Attributes:
        order: for it, alone, with its manifest.
        name: of its mount.
        link: to its blob.
        info: the document that says what it is.
    """

    order: ChainOrder
    name: str
    link: Descriptor
    info: bytes

    @property
    def size(self) -> int:
        """Bytes of its blob."""
        return self.link.size


class LayerStock:
    """A `lazyfs.mount.store_answers.Stock`.

    Args:
        nursery: where unused mounts are let go.
        images: where layers are looked for.
        starts: hastens the starts of images whose layers are asked for.
        chains: mounts them.
        blobs: brings their blobs.
    """

    def __init__(
        self, nursery: trio.Nursery, images: Images, starts: Starts, chains: Chains, blobs: RawBlobs
    ) -> None:
        self._nursery = nursery
        self._images = images
        self._starts = starts
        self._chains = chains
        self._blobs = blobs
        self._compiling: dict[str, trio.Event] = {}  # by manifest
        self._unused: set[str] = set()
        # Who used what when a daemon before us ended is not known: once, as each layer of a pulled image is.
        self._uses = Counter(entry.name for entry in chains.entries() if entry.order.alone)

    def __repr__(self) -> str:
        return f"<LayerStock {len(+self._uses)} layers used>"

    async def find(self, reference: str, digest: str) -> LazyStoredLayer:
        """The layer of an image, as Stock.find says."""
        for order in self._known(reference):
            with suppress(NotFound):
                async with self._images.lease(order) as image:
                    return _stored(image, order, digest)
        stored = await self._pulled(ChainOrder(reference, "", 1, digest, "", alone=True))
        self._starts.foresee(replace(stored.order, alone=False))
        if stored.name not in self._chains and stored.order.manifest not in self._compiling:
            self._compiling[stored.order.manifest] = trio.Event()
            self._nursery.start_soon(self._prepare, stored.order)
        return stored

    def _known(self, reference: str) -> Iterator[ChainOrder]:
        """Orders for the image, one for each manifest of which a layer is used."""
        orders = {
            entry.order.manifest: entry.order
            for entry in (*self._chains.entries(), *self._chains.idle())
            if entry.order.alone and entry.order.image == reference
        }
        return iter(orders.values())

    async def _pulled(self, order: ChainOrder) -> LazyStoredLayer:
        """The layer of an image that is being pulled, whose tag may have moved since it was opened."""
        async with self._images.lease(order) as image:
            try:
                return _stored(image, order, order.layer)
            except NotFound:
                if trio.current_time() - image.opened_at < _LOOK_AGAIN_S:
                    raise
        self._images.forget(order)
        async with self._images.lease(order) as image:
            return _stored(image, order, order.layer)

    async def _prepare(self, order: ChainOrder) -> None:
        """Compile all layers of an image at once, then mount them: whoever pulls it asks for each."""
        try:
            async with self._images.lease(order) as image:
                *others, topmost = _all_stored(image, order)
            await self._mounted(topmost)
        except (IndexerError, LazyfsError) as error:  # whoever asks for a layer is told
            _log.info("%s is not prepared: %s", order.image, message_of(error))
            others = []
        finally:
            self._compiling.pop(order.manifest).set()
        for layer in others:
            self._nursery.start_soon(self._mount_ahead, layer)

    async def _mount_ahead(self, layer: LazyStoredLayer) -> None:
        try:
            await self._mounted(layer)
        except (IndexerError, LazyfsError) as error:
            _log.info("layer %s is not mounted yet: %s", layer.link.digest, message_of(error))

    async def mounted(self, layer: LazyStoredLayer) -> bytes:
        """Where it is mounted, as Stock.mounted says."""
        compiling = self._compiling.get(layer.order.manifest)
        if compiling is not None:
            await compiling.wait()
        return await self._mounted(layer)

    async def _mounted(self, layer: LazyStoredLayer) -> bytes:
        mounted = await self._chains.again(layer.name) or await self._chains.mount(layer.order)
        if not self._uses[layer.name] and layer.name not in self._unused:
            self._unused.add(layer.name)
            self._nursery.start_soon(self._release_unused, layer.name)
        return os.fsencode(mounted.path)

    async def read_blob(self, layer: LazyStoredLayer, start: int, size: int) -> bytes:
        """Bytes of its blob, as Stock.read_blob says."""
        return await self._blobs.read(layer.order, layer.link, start, size)

    def use(self, layer: LazyStoredLayer, change: int) -> None:
        """Counts users, as Stock.use says; what the last one lets go is unmounted."""
        self._uses[layer.name] = max(0, self._uses[layer.name] + change)
        if change < 0 and not self._uses[layer.name]:
            self._nursery.start_soon(self._release, layer.name)

    async def _release_unused(self, name: str) -> None:
        """Let go what somebody has only looked at."""
        await trio.sleep(_UNUSED_S)
        self._unused.discard(name)
        if not self._uses[name]:
            await self._release(name)

    async def _release(self, name: str) -> None:
        try:
            await self._chains.release(name)
        except (IndexerError, LazyfsError) as error:
            _log.warning("%s: %s", name, message_of(error))


def _stored(image: OpenImage, order: ChainOrder, digest: str) -> LazyStoredLayer:
    """The image's layer of this digest, its own or that of its table of contents.

    Raises:
        NotFound: there is none; it, or one below it, has no index; or it cannot be shown by its digest.
        Unsupported: nobody knows its size.
    """
    layers = [layer.descriptor for layer in image.resolved.layers]
    places = [place for place, layer in enumerate(layers) if digest in {layer.digest, *toc_digests(layer)}]
    if not places:
        raise NotFound(f"{order.image} has no layer {digest}")
    if len(places) > 1:  # overlayfs takes no directory twice (ELOOP)
        raise NotFound(f"{order.image} has layer {digest} {len(places)} times")
    below = [layer.digest for layer in layers[: places[0] + 1]]
    missing = [each for each in below if each not in image.indexed]
    if missing:
        raise NotFound(f"{order.image}: no index that may be used of layer {missing[0]}")
    wanted = replace(image.pinned(order), layers=len(below), layer=below[-1])
    info = _info(image, image.resolved.layers[places[0]], digest)
    return LazyStoredLayer(wanted, chain_name(below, alone=True), layers[places[0]], info)


def _all_stored(image: OpenImage, order: ChainOrder) -> list[LazyStoredLayer]:
    """All layers of an image that are to be had, the lowest first."""
    found = []
    for layer in image.resolved.layers:
        with suppress(NotFound, Unsupported):
            found.append(_stored(image, order, layer.descriptor.digest))
    return found


def _info(image: OpenImage, layer: ImageLayer, asked: str) -> bytes:
    header, link = image.indexed[layer.descriptor.digest].head.header, layer.descriptor
    size = header.uncompressed_size if header.address_space is AddressSpace.TAR else claimed_size(link)
    toc_digest = "" if asked == link.digest else asked
    return storage_layer(link, header.diff_id or layer.diff_id, header.compression, size, toc_digest)
