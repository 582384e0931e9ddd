"""From the Tocs of an image's layers to its metadata image: merge, then write."""

from collections.abc import Sequence
from hashlib import sha256
from typing import BinaryIO

from indexer.difference import top_layer
from indexer.digest import digest_hex
from indexer.erofs_format import LAYOUT_VERSION, Device
from indexer.erofs_write import write_image
from indexer.merge import merge
from indexer.toc_codec import TocHead
from indexer.tree import number_layers


def image_key(toc_digests: Sequence[str], *, alone: bool = False) -> str:
    """Hexadecimal key of the metadata image of layers, the lowest first: all that it depends on.

    Args:
        toc_digests: of the layers.
        alone: as for `compile_image`.
    """
    text = " ".join([str(LAYOUT_VERSION), *["alone"] * alone, *map(digest_hex, toc_digests)])
    return sha256(text.encode()).hexdigest()


def compile_image(heads: Sequence[TocHead], out: BinaryIO, *, alone: bool = False) -> None:
    """Write the metadata image of layers, the lowest first. Two layers' members are in memory at a time.

    Args:
        heads: the layers' tables; each is a device of the image, or alone, each that has contents in it.
        out: what takes the image.
        alone: not the merged tree but what the topmost layer changes of it (`indexer.difference`).

    Raises:
        IndexerError: a table is damaged, or the layers make no tree.
    """
    layers = (head.members() for head in heads)
    if alone:
        root = top_layer(layers)
        heads = [heads[number] for number in number_layers(root)]
    else:
        root = merge(layers)
    devices = [Device(digest_hex(h.header.layer_digest).encode(), h.header.device_size) for h in heads]
    write_image(root, devices, out)
