"""The indexes of all layers of an image, found or made, and the tree that they make."""

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import trio

from indexer.errors import IndexerError
from lazyfs.cache.cache import Cache
from lazyfs.image.indexes.blame import Refused
from lazyfs.image.indexes.compiling import Compile, compiled
from lazyfs.image.indexes.indexing import IndexedLayer, Indexer
from lazyfs.image.resolve import ResolvedImage
from lazyfs.image.tasks import run_all
from lazyfs.source.base import Source


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
