"""Which files a trace is about."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from indexer.boot_pack import PackLayer
from indexer.toc import Kind
from indexer.toc_codec import TocHead, decode_head
from lazyfs.cache.cache import Cache
from lazyfs.image.boot.trace import Trace

FindHead = Callable[[PackLayer], TocHead | None]
"""Gives the table of contents of a layer, where it is here."""


class FileTouch(NamedTuple):
    """A file that was read.

    Attributes:
        layer: number of its layer in the trace.
        path: in that layer; b"" for what is no file's content, or of a layer whose table is not here.
        at_us: when it was read first, microseconds since the trace began.
        size: bytes of it that were read.
    """

    layer: int
    path: bytes
    at_us: int
    size: int


class FilesOfLayer:
    """Finds the file whose content lies at an address of a layer.

    Args:
        head: the layer's table of contents.
    """

    def __init__(self, head: TocHead) -> None:
        members = sorted(
            (member.data_start, member.data_start + member.size, member.path)
            for member in head.members()
            if member.kind is Kind.REGULAR and member.size
        )
        self._members = members
        self._starts = [start for start, _, _ in members]

    def at(self, start: int, end: int) -> Iterator[tuple[bytes, int]]:
        """The files with content in [start, end), and how many bytes of it each has."""
        at = max(bisect_right(self._starts, start) - 1, 0)
        for first, last, path in self._members[at : bisect_left(self._starts, end)]:
            size = min(end, last) - max(start, first)
            if size > 0:
                yield path, size


def touched_files(trace: Trace, find: FindHead) -> list[FileTouch]:
    """The files that a trace is about, in the order of first touch."""
    files = [_files(find(layer)) for layer in trace.layers]
    found: dict[tuple[int, bytes], FileTouch] = {}
    for touch in trace.touches:
        layer = files[touch.layer]
        parts: Sequence[tuple[bytes, int]] = list(layer.at(touch.start, touch.end)) if layer else ()
        for path, size in parts or ((b"", touch.end - touch.start),):
            known = found.get((touch.layer, path))
            before = known or FileTouch(touch.layer, path, touch.at_us, 0)
            found[touch.layer, path] = before._replace(size=before.size + size)
    return list(found.values())


def _files(head: TocHead | None) -> FilesOfLayer | None:
    return FilesOfLayer(head) if head else None


def find_head(cache: Cache, layer: PackLayer) -> TocHead | None:
    """The table of contents that the cache has under these digests, whoever made it.

    Raises:
        FormatError: not sha256 digests, or it is damaged.
        CacheError: the disk fails.
    """
    for name in cache.tocs.names(layer.layer_digest):
        data = cache.tocs.load(layer.layer_digest, name, layer.toc_digest)
        if data is not None:
            return decode_head(data, layer.toc_digest)
    return None
