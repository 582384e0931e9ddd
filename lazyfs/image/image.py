"""An image ready to be read: its merged tree, and layers that fetch what is missing."""

import mmap
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

from msgspec import Struct, field

from indexer.boot_pack import PackLayer
from indexer.erofs.read import MetadataImage
from lazyfs.cache.cache import Cache
from lazyfs.image.boot.packs import BootPacks
from lazyfs.image.boot.start import Boot, booting
from lazyfs.image.indexes.gathering import IndexFinder, indexed_tree, made_here
from lazyfs.image.indexes.indexing import IndexedLayer, Indexer
from lazyfs.image.reading.fetcher import FetchSettings
from lazyfs.image.reading.layer import LazyLayer
from lazyfs.image.reading.opening import open_layer
from lazyfs.image.reading.traffic import Traffic
from lazyfs.image.resolve import ResolvedImage
from lazyfs.image.tasks import background_tasks
from lazyfs.source.base import Source

_PIECE: Final = 1 << 20


class Image(Struct, frozen=True):
    """An open image.

    Attributes:
        resolved: what it is.
        metadata: the merged tree.
        metadata_file: where that lies.
        layers: by number, as the tree's extents count them.
        indexed: the layers' indexes, in the same order.
        boot: what hastens its start; None where it was not opened to be mounted.
        traffic: where its requests take turns.
    """

    resolved: ResolvedImage
    metadata: MetadataImage
    metadata_file: Path
    layers: Sequence[LazyLayer]
    indexed: Sequence[IndexedLayer]
    boot: Boot | None = None
    traffic: Traffic = field(default_factory=Traffic)

    @property
    def by_names(self) -> dict[PackLayer, LazyLayer]:
        """The layers by their digests and those of their tables of contents, each once."""
        pairs = zip(self.indexed, self.layers, strict=True)
        return {PackLayer(index.head.header.layer_digest, index.head.digest): layer for index, layer in pairs}

    def read_nowait(self, nid: int, offset: int, size: int) -> bytes | None:
        """As `read` where all of it is local, else None. Raises FormatError for a corrupt tree."""
        where = self._where(nid, offset, size)
        return b"" if where is None else self.layers[where[0]].read_nowait(where[1], where[2])

    async def read(self, nid: int, offset: int, size: int) -> bytes:
        """Bytes [offset, offset + size) of a regular file, fewer at its end.

        Raises:
            IndexerError: what came is damaged.
            LazyfsError: it did not come.
        """
        where = self._where(nid, offset, size)
        return b"" if where is None else await self.layers[where[0]].read(where[1], where[2])

    def _where(self, nid: int, offset: int, size: int) -> tuple[int, int, int] | None:
        """(layer, start, size) of these bytes of a regular file; None where it has none of them."""
        size = min(size, self.metadata.inode(nid).size - offset)
        extent = self.metadata.extent(nid)
        return None if size <= 0 or extent is None else (extent[0], extent[1] + offset, size)

    async def pieces(self, nid: int) -> AsyncIterator[bytes]:
        """A regular file's content in order, in pieces of at most 1 MiB. Raises what `read` does."""
        size = self.metadata.inode(nid).size
        for offset in range(0, size, _PIECE):
            yield await self.read(nid, offset, _PIECE)


def map_metadata(path: Path) -> MetadataImage:
    """A metadata image, mapped.

    Raises:
        FormatError: it is damaged.
    """
    with path.open("rb") as file:
        return MetadataImage(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))


@asynccontextmanager
async def open_image(
    resolved: ResolvedImage,
    source: Source,
    indexer: Indexer,
    cache: Cache,
    settings: FetchSettings,
    finders: Sequence[IndexFinder] = (),
    packs: BootPacks | None = None,
) -> AsyncIterator[Image]:
    """The image, open for reading. What was fetched is made durable at the end.

    Args:
        resolved: the image.
        source: where it is.
        indexer: knows and makes indexes.
        cache: where everything is kept.
        settings: how to fetch.
        finders: know of other indexes.
        packs: knows of boot packs; None where nothing is to hasten a start.

    Raises:
        IndexerError: a layer or its table is damaged.
        LazyfsError: a layer that has no index cannot be had, or the cache cannot be used.
    """
    here = made_here(resolved, indexer)
    digests = [layer.descriptor.digest for layer in resolved.layers]
    async with AsyncExitStack() as stack:
        boot: Boot | None = None
        if packs is not None:
            boot = await stack.enter_async_context(booting(packs, resolved, settings.traffic, here))
        indexed, metadata_file = await indexed_tree(resolved, source, indexer, cache, finders, here)
        metadata = map_metadata(metadata_file)
        links = {layer.descriptor.digest: layer.descriptor for layer in resolved.layers}
        layers = {
            digest: await stack.enter_async_context(
                open_layer(indexed[digest], source.blob(link), cache, settings)
            )
            for digest, link in links.items()
        }
        if boot is not None:
            stack.push_async_callback(boot.end)
            if not all(layer.entry.complete for layer in layers.values()):
                nursery = await stack.enter_async_context(background_tasks())
                nursery.start_soon(source.prepare, 1)
        image = Image(
            resolved,
            metadata,
            metadata_file,
            [layers[digest] for digest in digests],
            [indexed[digest] for digest in digests],
            boot,
            settings.traffic,
        )
        if boot is not None:
            boot.attach(image.by_names)
        yield image
