"""All content of an open image, brought here."""

from functools import partial
from typing import Final

from indexer.toc import TocHeader
from lazyfs.image.image import Image
from lazyfs.image.indexes.indexing import Progress, no_progress
from lazyfs.image.reading.layer import LazyLayer
from lazyfs.image.tasks import run_few

_PIECE: Final = 1 << 20
_LAYERS_AT_ONCE: Final = 3


async def fetch_whole(image: Image, progress: Progress = no_progress) -> None:
    """Reads every layer of an image from its beginning to its end, so that the cache has it, if it has room.

    Args:
        image: the image.
        progress: told how far each layer has come, in uncompressed bytes.

    Raises:
        IndexerError: what came is damaged.
        LazyfsError: it did not come.
    """
    pairs = zip(image.layers, image.indexed, strict=True)
    headers = {layer: index.head.header for layer, index in pairs}
    await run_few(
        [partial(_fetch, layer, header, progress) for layer, header in headers.items()], _LAYERS_AT_ONCE
    )


async def _fetch(layer: LazyLayer, header: TocHeader, progress: Progress) -> None:
    size = header.uncompressed_size
    for start in range(0, size, _PIECE):
        end = min(start + _PIECE, size)
        await layer.read(start, end - start)
        progress(header.layer_digest, end, size)
