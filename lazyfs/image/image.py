"""An image ready to be read: its merged tree, and layers that fetch what is missing."""

import mmap
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import trio

from indexer.boot_pack import PackLayer
from indexer.erofs.read import MetadataImage
from indexer.errors import IndexerError
from indexer.toc import Span
from lazyfs.cache.cache import Cache
from lazyfs.image.boot.packs import BootPacks
from lazyfs.image.boot.start import Boot, booting
from lazyfs.image.completion import complete_when_much_read
from lazyfs.image.indexes.blame import Refused
from lazyfs.image.indexes.compiling import Compile, compiled
from lazyfs.image.indexes.indexing import IndexedLayer, Indexer
from lazyfs.image.indexes.windows import WindowFetcher
from lazyfs.image.reading.beside import Beside
from lazyfs.image.reading.fetcher import FetchSettings, SpanFetcher
from lazyfs.image.reading.layer import LazyLayer
from lazyfs.image.reading.traffic import SlowRead, Traffic, WaitTally
from lazyfs.image.reading.waits import Wait
from lazyfs.image.resolve import ResolvedImage
from lazyfs.image.tasks import open_tasks, run_all
from lazyfs.source.base import Blob, Source

_PIECE: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Image:
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


class IndexFinder(Protocol):
    """Knows of indexes that were not made here."""

    async def find(self, resolved: ResolvedImage, wanted: Collection[str]) -> Mapping[str, IndexedLayer]:
        """Indexes that may be used for an image, by layer digest, of as many of the wanted as there are.

        What stands in the way is logged: without them, indexes are made.
        """


def made_here(resolved: ResolvedImage, indexer: Indexer) -> dict[str, IndexedLayer]:
    """The indexes that were made here, by layer digest."""
    layers = {layer.descriptor.digest: layer.descriptor for layer in resolved.layers}
    found = {digest: indexer.find(descriptor) for digest, descriptor in layers.items()}
    return {digest: index for digest, index in found.items() if index is not None}


async def find_indexes(
    resolved: ResolvedImage,
    indexer: Indexer,
    finders: Sequence[IndexFinder],
    here: Mapping[str, IndexedLayer] | None = None,
    refused: Refused | None = None,
) -> dict[str, IndexedLayer]:
    """Indexes by layer digest: made here before, else found by the finders.

    Args:
        resolved: the image.
        indexer: knows those made here.
        finders: know of others.
        here: those made or audited here, where they have been looked up.
        refused: those that do not count.
    """
    refused = refused or Refused()
    sought = {layer.descriptor.digest for layer in resolved.layers} - refused.exhausted()
    indexed = dict(made_here(resolved, indexer) if here is None else here)
    for finder in finders:
        if missing := sought - indexed.keys():
            found = await finder.find(resolved, missing)
            bad = refused.among(found)
            indexed.update((digest, index) for digest, index in found.items() if digest not in bad)
    return indexed


async def index_layers(
    resolved: ResolvedImage,
    source: Source,
    indexer: Indexer,
    finders: Sequence[IndexFinder] = (),
    here: Mapping[str, IndexedLayer] | None = None,
    refused: Refused | None = None,
) -> dict[str, IndexedLayer]:
    """Indexes of all layers by layer digest: as `find_indexes` finds them, else made now.

    Raises:
        IndexerError: a layer is damaged, or not what the manifest promises.
        LazyfsError: a layer cannot be had.
    """

    async def ensure(digest: str) -> None:
        descriptor = layers[digest]
        indexed[digest] = await indexer.ensure(descriptor, source.blob(descriptor))

    layers = {layer.descriptor.digest: layer.descriptor for layer in resolved.layers}
    indexed = await find_indexes(resolved, indexer, finders, here, refused)
    await run_all(partial(ensure, digest) for digest in layers if digest not in indexed)
    return indexed


async def indexed_tree(
    resolved: ResolvedImage,
    source: Source,
    indexer: Indexer,
    cache: Cache,
    finders: Sequence[IndexFinder] = (),
    here: Mapping[str, IndexedLayer] | None = None,
    compile_tree: Compile = compiled,
) -> tuple[dict[str, IndexedLayer], Path]:
    """Indexes of all layers by layer digest, as `index_layers` says, and what `compile_tree` makes of them.

    A table from elsewhere with which the layers make no tree is done without: the next one that is found
    takes its place, or one that is made now.

    Raises:
        IndexerError: the layers make no tree, whoever indexes them.
        LazyfsError: a layer cannot be had, or the cache cannot be used.
    """
    digests = [layer.descriptor.digest for layer in resolved.layers]
    refused = Refused()
    while True:
        indexed = await index_layers(resolved, source, indexer, finders, here, refused)
        try:
            return indexed, await compile_tree(resolved, indexed, cache)
        except IndexerError as error:
            here = {digest: index for digest, index in indexed.items() if index.audited}
            judge = partial(refused.add, digests, indexed, here.keys(), error)
            if not await trio.to_thread.run_sync(judge):
                raise


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


@asynccontextmanager
async def open_layer(
    indexed: IndexedLayer,
    blob: Blob,
    cache: Cache,
    settings: FetchSettings,
    waits: WaitTally | None = None,
) -> AsyncIterator[LazyLayer]:
    """A layer, open for reading. What was fetched is made durable at the end.

    Args:
        indexed: its index.
        blob: its bytes at their source.
        cache: where they are kept.
        settings: how to fetch; their traffic is told of reads that wait.
        waits: told of those of this layer.

    Raises:
        IndexerError: its table is damaged.
        CacheError: the cache cannot be used.
    """
    head = indexed.head
    spans = head.spans()
    facts = (head.header.layer_digest, head.digest, head.header.device_size, spans.leaves)
    with await trio.to_thread.run_sync(cache.layer, *facts) as entry:  # it may wait for an evictor
        async with open_tasks() as nursery:
            fetcher = SpanFetcher(
                spans=spans,
                entry=entry,
                read_window=partial(_window, indexed.windows),
                blob=blob,
                nursery=nursery,
                settings=settings,
                windows=WindowFetcher(indexed.remote_windows, nursery) if indexed.remote_windows else None,
            )
            line = blob.line if settings.read_ahead.most_reach else None
            beside = Beside(spans, fetcher, line, head.file_ranges) if line is not None else None
            names = PackLayer(head.header.layer_digest, head.digest)
            tallies = (settings.traffic, waits) if waits is not None else (settings.traffic,)
            waited = partial(_tell, tallies, names)
            lazy = LazyLayer(spans, head.extents(), entry, fetcher, settings.read_ahead, beside, waited)
            if settings.read_ahead.most_reach:
                nursery.start_soon(complete_when_much_read, lazy)
            yield lazy
            nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(lazy.sync)


def _tell(tallies: Iterable[Traffic | WaitTally], layer: PackLayer, wait: Wait) -> None:
    read = SlowRead(wait.seconds, wait.asked_s, layer, wait.start, wait.size, wait.cause, wait.came)
    for tally in tallies:
        tally.waited(read)


def _window(windows: memoryview, span: Span) -> bytes:
    return bytes(windows[span.window_start : span.window_end])
