"""Publishes the index of an image: what was made here, and nothing else."""

from collections.abc import Mapping

import trio

from lazyfs.image.indexes.artifact import LayerFiles, build_artifact
from lazyfs.image.indexes.indexing import IndexedLayer, Indexer
from lazyfs.image.resolve import ResolvedImage
from lazyfs.source.push.artifact import Artifact, Publisher


async def publish_index(
    resolved: ResolvedImage, indexed: Mapping[str, IndexedLayer], indexer: Indexer, publisher: Publisher
) -> tuple[str, bool]:
    """Store the index of an image where `publisher` leads.

    Args:
        resolved: the image.
        indexed: the indexes of all its layers, made here.
        indexer: has made them.
        publisher: stores it.

    Returns:
        Digest of the artifact's manifest, and whether anything had to be stored.

    Raises:
        CacheError: an index was not made here, or is gone.
        SourceError: it cannot be stored.
    """
    artifact = await trio.to_thread.run_sync(_artifact, resolved, indexed, indexer)
    return artifact.descriptor.digest, await publisher.publish(artifact)


def _artifact(resolved: ResolvedImage, indexed: Mapping[str, IndexedLayer], indexer: Indexer) -> Artifact:
    digests = dict.fromkeys(layer.descriptor.digest for layer in resolved.layers)
    found = [indexed[digest] for digest in digests]
    files = [
        LayerFiles(digest, indexer.encoded(layer), layer.windows)
        for digest, layer in zip(digests, found, strict=True)
    ]
    return build_artifact(resolved.descriptor, files)
