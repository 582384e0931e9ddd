"""From the Tocs of an image's layers to its metadata image: merge, then write."""

from collections.abc import Sequence
from hashlib import sha256
from typing import BinaryIO

from indexer.digest import digest_hex
from indexer.erofs_format import LAYOUT_VERSION, Device
from indexer.erofs_write import write_image
from indexer.merge import merge
from indexer.toc_codec import TocHead


def image_key(toc_digests: Sequence[str]) -> str:
    """Hexadecimal key of the metadata image of layers, the lowest first: all that it depends on."""
    text = " ".join([str(LAYOUT_VERSION), *map(digest_hex, toc_digests)])
    return sha256(text.encode()).hexdigest()


def compile_image(heads: Sequence[TocHead], out: BinaryIO) -> None:
    """Write the metadata image of layers, the lowest first. One layer's members are in memory at a time.

    Raises:
        IndexerError: a table is damaged, or the layers make no tree.
    """
    root = merge(head.members() for head in heads)
    devices = [Device(digest_hex(h.header.layer_digest).encode(), h.header.device_size) for h in heads]
    write_image(root, devices, out)
