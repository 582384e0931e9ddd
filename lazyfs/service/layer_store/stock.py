"""Layers for Podman and CRI-O: found in the images that they ask about, mounted alone, counted.

A layer that is used stays what it was found as, whatever becomes of the image's tag: its mount's order, which
outlives us, names the manifest.
"""

import logging
import os
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Container, Iterator
from contextlib import suppress
from functools import partial
from typing import Final, TypeVar

import trio
from msgspec import Struct
from msgspec.structs import replace

from indexer.errors import IndexerError
from indexer.member_table import Owners
from indexer.toc import AddressSpace
from indexer.toc_codec import TocHead
from lazyfs.errors import LazyfsError, NotFound
from lazyfs.exit_codes import message_of
from lazyfs.image.indexes.embedded_toc import claim_of
from lazyfs.image.indexes.indexing import IndexKind, Voucher
from lazyfs.image.trust.demands import IndexTrust
from lazyfs.mount.requesters import container_namespace
from lazyfs.oci.chain import ChainOrder, chain_name
from lazyfs.oci.config import ImageLayer
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.storage_layer import claimed_size, layer_by_digest, layer_by_toc
from lazyfs.service.chains import Chains
from lazyfs.service.images import Images, OpenImage
from lazyfs.service.layer_store.raw_blobs import BlobReader, RawBlobs
from lazyfs.service.layer_store.shifted import ShiftedMounts
from lazyfs.service.starts import Starts

_log = logging.getLogger(__name__)

T = TypeVar("T")

_BELIEVED: Final = (IndexTrust.SIGNED, IndexTrust.ANY)
_EMBEDDED: Final = (IndexKind.ESTARGZ, IndexKind.ZSTD_CHUNKED)
_UNUSED_S: Final = 60.0
_LOOK_AGAIN_S: Final = 10.0
_MOST_KNOWN: Final = 1000

TellOwners = Callable[[TocHead], Owners]


class LazyStoredLayer(Struct, frozen=True):
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
        shifted: shows them to containers in user namespaces.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        images: Images,
        starts: Starts,
        chains: Chains,
        blobs: RawBlobs,
        shifted: ShiftedMounts,
    ) -> None:
        self._nursery = nursery
        self._images = images
        self._starts = starts
        self._chains = chains
        self._blobs = blobs
        self._shifted = shifted
        self._compiling: dict[str, trio.Event] = {}  # by manifest
        self._unused: set[str] = set()
        self._known_owners: OrderedDict[str, Owners] = OrderedDict()  # by the digest of the index
        # Who used what when a daemon before us ended is not known: once, as each layer of a pulled image is.
        self._uses = {entry.name: Counter([entry.order]) for entry in chains.entries() if entry.order.alone}

    def __repr__(self) -> str:
        return f"<LayerStock {len(self._uses)} layers used>"

    async def find(self, reference: str, digest: str) -> LazyStoredLayer:
        """The layer of an image, as Stock.find says."""
        for order in self._known(reference):
            with suppress(IndexerError, LazyfsError):  # the next may have it, or tells what is wrong
                async with self._images.lease(order) as image:
                    return _stored(image, order, digest, self._owners, self._uses)
        stored = await self._pulled(ChainOrder(reference, "", 1, digest, "", alone=True))
        self._starts.foresee(stored.order)
        if stored.name not in self._chains and stored.order.manifest not in self._compiling:
            self._compiling[stored.order.manifest] = trio.Event()
            self._start(self._prepare, stored.order)
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
                return _stored(image, order, order.layer, self._owners)
            except NotFound:
                if trio.current_time() - image.opened_at < _LOOK_AGAIN_S:
                    raise
        self._images.forget(order)
        async with self._images.lease(order) as image:
            return _stored(image, order, order.layer, self._owners)

    async def _prepare(self, order: ChainOrder) -> None:
        """Compile all layers of an image at once, then mount them: whoever pulls it asks for each."""
        rest: list[ChainOrder] = []
        try:
            async with self._images.lease(order) as image:
                orders = _all_orders(image, order)
            *rest, topmost = orders or [order]
            await self._mount_ahead(topmost)
        finally:
            self._compiling.pop(order.manifest).set()
        for lower in rest:
            self._start(self._mount_ahead, lower)

    async def _mount_ahead(self, order: ChainOrder) -> None:
        mounted = await self._chains.mount(order)
        self._expect_use(mounted.name)

    def _start(self, work: Callable[[T], Awaitable[None]], of: T) -> None:
        """Do something that nobody waits for; what goes wrong ends nothing else."""
        self._nursery.start_soon(self._done_or_logged, work, of)

    async def _done_or_logged(self, work: Callable[[T], Awaitable[None]], of: T) -> None:
        try:
            await work(of)
        except (IndexerError, LazyfsError) as error:  # whoever asks again is told
            _log.info("%s: %s", of, message_of(error))
        except Exception:  # noqa: BLE001  # a bug here must not end the daemon
            _log.exception("a bug")

    async def mounted(self, layer: LazyStoredLayer, thread: int) -> bytes:
        """Where it is mounted, as Stock.mounted says."""
        compiling = self._compiling.get(layer.order.manifest)
        if compiling is not None:
            await compiling.wait()
        mounted = await self._chains.again(layer.name) or await self._chains.mount(layer.order)
        self._expect_use(layer.name)
        process = await trio.to_thread.run_sync(container_namespace, thread)
        shown = mounted.path if process is None else await self._shifted.shown(mounted.path, process)
        return os.fsencode(shown)

    def _owners(self, head: TocHead) -> Owners:
        """Who owns what is in a layer; each name of a layer is looked up many times.

        Raises:
            IndexerError: its index is damaged.
        """
        known = self._known_owners.get(head.digest)
        if known is None:
            known = self._known_owners[head.digest] = head.owners()
            while len(self._known_owners) > _MOST_KNOWN:
                self._known_owners.popitem(last=False)
        return known

    def open_blob(self, layer: LazyStoredLayer) -> BlobReader:
        """Somebody who begins to read its blob."""
        return self._blobs.open(layer.order, layer.link)

    def use(self, layer: LazyStoredLayer, change: int) -> None:
        """Counts users, as Stock.use says; what the last one lets go is unmounted."""
        uses = self._uses.setdefault(layer.name, Counter())
        if change > 0:
            uses[layer.order] += change
        else:  # of those before us, we do not know by which name they came
            order = layer.order if uses[layer.order] else next(iter(+uses), layer.order)
            uses[order] += change
        uses = self._uses[layer.name] = +uses
        if uses:
            self._start(partial(self._chains.order_as, layer.name), tuple(uses))
            return
        del self._uses[layer.name]
        if change < 0:
            self._start(self._chains.release, layer.name)

    def _expect_use(self, name: str) -> None:
        """Let a mount go that nobody uses before long: somebody has only looked at it."""
        if name not in self._uses and name not in self._unused:
            self._unused.add(name)
            self._start(self._release_unused, name)

    async def _release_unused(self, name: str) -> None:
        await trio.sleep(_UNUSED_S)
        self._unused.discard(name)
        if name not in self._uses:
            await self._chains.release(name)


def _stored(
    image: OpenImage, order: ChainOrder, digest: str, owners: TellOwners, used: Container[str] = ()
) -> LazyStoredLayer:
    """The image's layer of this digest, its own or that of its table of contents.

    Args:
        image: see above.
        order: by which the image was opened.
        digest: see above.
        owners: tells who owns what is in a layer, by its index.
        used: names of layers that are used: such a one stays, whatever index its image is read by now.

    Raises:
        NotFound: there is none; it, or one below it, has no index; or it cannot be shown by its digest.
    """
    layers = image.resolved.layers
    for place, layer in enumerate(layers):
        if digest in {layer.descriptor.digest, *_toc_digests(layer.descriptor)}:
            wanted = _order(image, order, place)
            below = [each.descriptor.digest for each in layers[: place + 1]]
            name = chain_name(below, alone=True)
            if name not in used:
                _check_known_by(image, layer, digest)
            return LazyStoredLayer(wanted, name, layer.descriptor, _info(image, layer, digest, owners))
    raise NotFound(f"{order.image} has no layer {digest}")


def _toc_digests(layer: Descriptor) -> tuple[str, ...]:
    """What the manifest says that a table of contents in the layer has, as far as it was compared."""
    with suppress(IndexerError):
        claim = claim_of(layer)
        return tuple(claim.promise) if claim else ()
    return ()


def _order(image: OpenImage, order: ChainOrder, place: int) -> ChainOrder:
    """For the image's layer at a place, counted from 0, alone.

    Raises:
        NotFound: as for `_stored`.
    """
    digests = [layer.descriptor.digest for layer in image.resolved.layers]
    times = digests.count(digests[place])
    if times > 1:  # overlayfs takes no directory twice (ELOOP)
        raise NotFound(f"{order.image} has layer {digests[place]} {times} times")
    below = digests[: place + 1]
    missing = [each for each in below if each not in image.indexed]
    if missing:
        raise NotFound(f"{order.image}: no index that may be used of layer {missing[0]}")
    return replace(image.pinned(order), layers=len(below), layer=below[-1], alone=True)


def _all_orders(image: OpenImage, order: ChainOrder) -> list[ChainOrder]:
    """For all layers of an image that are to be had, the lowest first."""
    found = []
    for place in range(len(image.resolved.layers)):
        with suppress(NotFound):
            found.append(_order(image, order, place))
    return found


def _check_known_by(image: OpenImage, layer: ImageLayer, asked: str) -> None:
    """See that a layer may be known by what it is asked for by: that counts for other images, too.

    Raises:
        NotFound: that would be a mere claim.
    """
    indexed, digest = image.indexed[layer.descriptor.digest], layer.descriptor.digest
    if asked != digest:
        if indexed.kind not in _EMBEDDED or indexed.vouched_by is not Voucher.MANIFEST:
            raise NotFound(f"layer {digest} is not read by its own table of contents")
        return
    is_seen = indexed.audited and indexed.head.header.diff_id
    if not is_seen and image.workshop.demands.indexes not in _BELIEVED:
        raise NotFound(f"the diffID of layer {digest} is only claimed: docs/podman.md says what helps")


def _info(image: OpenImage, layer: ImageLayer, asked: str, owners: TellOwners) -> bytes:
    """What the layer is.

    Raises:
        NotFound: that is not known.
    """
    head, link = image.indexed[layer.descriptor.digest].head, layer.descriptor
    header = head.header
    diff_id = header.diff_id or layer.diff_id
    if asked != link.digest:
        return layer_by_toc(link, header.compression, asked, diff_id, owners(head))
    size = header.uncompressed_size if header.address_space is AddressSpace.TAR else claimed_size(link)
    if size is None:  # containers/storage 1.43 pulls a layer of unknown size, and does not start it
        raise NotFound(f"nobody tells how large layer {link.digest} is uncompressed")
    return layer_by_digest(link, header.compression, diff_id, size, owners(head))
