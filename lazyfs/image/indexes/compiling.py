"""Metadata images of an image's layers: compiled once, and kept in the cache."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import trio

from indexer.compile import alone_key, compile_alone, compile_image, image_key
from indexer.toc_codec import TocHead
from lazyfs.cache.cache import Cache
from lazyfs.cache.catalogue import KeptImage
from lazyfs.image.indexes.indexing import IndexedLayer
from lazyfs.image.resolve import ResolvedImage

Compile = Callable[[ResolvedImage, Mapping[str, IndexedLayer], Cache], Awaitable[Path]]
"""One of the two below: gives the metadata image of an image whose layers have these indexes, by digest."""


async def compiled(resolved: ResolvedImage, indexed: Mapping[str, IndexedLayer], cache: Cache) -> Path:
    """The metadata image of the image's merged tree, compiled unless the cache has it.

    The cache's catalogue knows of the image from then on.

    Args:
        resolved: the image.
        indexed: the indexes of its layers, by digest.
        cache: where it is kept.

    Raises:
        IndexerError: the layers make no tree.
        CacheError: there is no room for it.
    """
    heads = _heads(resolved, indexed)
    key = image_key(_digests(heads))
    path = await _ensured(key, partial(cache.images.publish, key, partial(compile_image, heads)), cache)
    await note(resolved, indexed, cache)
    return path


async def compiled_alone(resolved: ResolvedImage, indexed: Mapping[str, IndexedLayer], cache: Cache) -> Path:
    """That of the topmost layer alone, as overlayfs takes a lower directory; otherwise as `compiled` says.

    Those of the layers below are compiled as well, which costs hardly more. The catalogue is not told.
    """
    heads = _heads(resolved, indexed)
    return await _ensured(alone_key(_digests(heads)), partial(_compile_alone, heads, cache), cache)


def _compile_alone(heads: Sequence[TocHead], cache: Cache) -> Path:
    """Compile each layer alone; gives the topmost."""
    tocs = _digests(heads)
    for number, write in enumerate(compile_alone(heads), 1):
        key = alone_key(tocs[:number])
        path = cache.images.path(key) or cache.images.publish(key, write)
    return path


async def _ensured(key: str, compile_missing: Callable[[], Path], cache: Cache) -> Path:
    path = cache.images.path(key)
    if path is None:
        async with cache.named_lock(f"compile-{key}"):
            path = cache.images.path(key)
            if path is None:
                path = await trio.to_thread.run_sync(compile_missing)
    return path


async def note(resolved: ResolvedImage, indexed: Mapping[str, IndexedLayer], cache: Cache) -> None:
    """Have the cache's catalogue know of the image, by which its layers and trees are found and collected."""
    kept = kept_image(resolved, _digests(_heads(resolved, indexed)))
    await trio.to_thread.run_sync(cache.catalogue.note, kept)


def kept_image(resolved: ResolvedImage, tocs: Sequence[str]) -> KeptImage:
    """What the cache's catalogue holds of an image whose layers are read by tables with these digests."""
    documents = (resolved.root.digest, resolved.manifest.config.digest)
    layers = tuple(zip((layer.descriptor.digest for layer in resolved.layers), tocs, strict=True))
    return KeptImage(resolved.name, resolved.descriptor.digest, documents, layers, image_key(tocs))


def _heads(resolved: ResolvedImage, indexed: Mapping[str, IndexedLayer]) -> list[TocHead]:
    return [indexed[layer.descriptor.digest].head for layer in resolved.layers]


def _digests(heads: Sequence[TocHead]) -> list[str]:
    return [head.digest for head in heads]
