"""From the Tocs of an image's layers to its metadata image: merge, then write."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from hashlib import sha256
from typing import BinaryIO

from indexer.difference import layers_alone
from indexer.digest import digest_hex
from indexer.erofs.format import LAYOUT_VERSION, Device
from indexer.erofs.write import write_image
from indexer.merge import merge
from indexer.toc_codec import TocHead
from indexer.tree import Node, number_layers


def image_key(toc_digests: Sequence[str]) -> str:
    """Hexadecimal key of what `compile_image` makes of layers, the lowest first: all that it depends on."""
    return _key(*map(digest_hex, toc_digests))


def alone_key(toc_digests: Sequence[str]) -> str:
    """That of what `compile_alone` makes of the topmost of layers."""
    return _key("alone", *map(digest_hex, toc_digests))


def _key(*words: str) -> str:
    return sha256(" ".join([str(LAYOUT_VERSION), *words]).encode()).hexdigest()


def compile_image(heads: Sequence[TocHead], out: BinaryIO) -> None:
    """Write the metadata image of layers, the lowest first. One layer's members are in memory at a time.

    Raises:
        IndexerError: a table is damaged, or the layers make no tree.
    """
    _write(merge(head.members() for head in heads), heads, out)


def compile_alone(heads: Sequence[TocHead]) -> Iterator[Callable[[BinaryIO], None]]:
    """What writes the metadata image of each layer alone, the lowest first (`indexer.difference`).

    Its devices are those layers that hold its contents: mostly this one.

    Raises:
        IndexerError: a table is damaged, or the layers make no tree.
    """
    for root in layers_alone(head.members() for head in heads):
        holders = [heads[number] for number in number_layers(root)]
        yield partial(_write, root, holders)


def _write(root: Node, heads: Sequence[TocHead], out: BinaryIO) -> None:
    devices = [Device(digest_hex(h.header.layer_digest).encode(), h.header.device_size) for h in heads]
    write_image(root, devices, out)
