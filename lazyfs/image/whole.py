"""All content of an open image, brought here."""

from functools import partial
from typing import Final

from lazyfs.image.image import Image
from lazyfs.image.layer import LazyLayer
from lazyfs.image.tasks import run_few

_PIECE: Final = 1 << 20
_LAYERS_AT_ONCE: Final = 3


async def fetch_whole(image: Image) -> None:
    """Reads every layer of an image from its beginning to its end, so that the cache has it, if it has room.

    Raises:
        IndexerError: what came is damaged.
        LazyfsError: it did not come.
    """
    pairs = zip(image.layers, image.indexed, strict=True)
    sizes = {layer: index.head.header.uncompressed_size for layer, index in pairs}
    await run_few([partial(_fetch, layer, size) for layer, size in sizes.items()], _LAYERS_AT_ONCE)


async def _fetch(layer: LazyLayer, size: int) -> None:
    for start in range(0, size, _PIECE):
        await layer.read(start, min(_PIECE, size - start))
