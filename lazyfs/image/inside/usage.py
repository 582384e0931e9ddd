"""How many bytes of content directories hold, and from which layers they come. Asks nothing but the tree."""

from collections.abc import Iterator
from typing import NamedTuple

from lazyfs.image.image import Image
from lazyfs.image.inside.browse import Entry, below


class Usage(NamedTuple):
    """What a directory holds with all below it; or one file.

    Attributes:
        path: from the root, without a leading "/".
        depth: directories between it and where counting began.
        size: bytes of content of regular files. An inode with several names counts once, where its first
            name stands in the order of the walk, as in du(1).
        files: those regular files.
    """

    path: bytes
    depth: int
    size: int
    files: int


class LayerUsage(NamedTuple):
    """What of a tree comes from one layer.

    Attributes:
        number: of the layer, from 0 at the bottom.
        digest: of its blob.
        size: bytes of content of regular files, each inode once.
        files: those regular files.
        compressed_size: bytes of the whole blob.
    """

    number: int
    digest: str
    size: int
    files: int
    compressed_size: int


def usage(image: Image, top: Entry, *, files: bool = False) -> Iterator[Usage]:
    """What every directory below `top`, and `top` itself, holds; a directory after all that is in it.

    Args:
        image: the image.
        top: where to begin.
        files: also each file by itself, with size 0 where another of its names has counted already.
    """
    seen: set[int] = set()
    open_directories: list[Usage] = []

    def closed(depth: int) -> Iterator[Usage]:
        """Those directories that end before an entry of this depth."""
        while len(open_directories) > depth:
            ended = open_directories.pop()
            if open_directories:
                open_directories[-1] = _plus(open_directories[-1], ended)
            yield ended

    for depth, entry in below(image.metadata, top):
        yield from closed(depth)
        counts = entry.letter == "f" and entry.inode.nid not in seen
        seen.add(entry.inode.nid)
        own = Usage(entry.path, depth, entry.inode.size if counts else 0, int(counts))
        if entry.letter == "d" or not depth:
            open_directories.append(own)
            continue
        open_directories[-1] = _plus(open_directories[-1], own)
        if files:
            yield own
    yield from closed(0)


def _plus(directory: Usage, child: Usage) -> Usage:
    return directory._replace(size=directory.size + child.size, files=directory.files + child.files)


def layer_usage(image: Image, top: Entry) -> list[LayerUsage]:
    """What of `top` and all below it comes from each layer, the lowest first; empty files are of none."""
    layers = [layer.descriptor for layer in image.resolved.layers]
    sizes = dict.fromkeys(range(len(layers)), 0)
    counts = dict(sizes)
    seen: set[int] = set()
    for _, entry in below(image.metadata, top):
        nid = entry.inode.nid
        extent = image.metadata.extent(nid) if entry.letter == "f" and nid not in seen else None
        seen.add(nid)
        if extent is not None:
            sizes[extent[0]] += entry.inode.size
            counts[extent[0]] += 1
    return [
        LayerUsage(number, layer.digest, sizes[number], counts[number], layer.size)
        for number, layer in enumerate(layers)
    ]
