"""Tables of contents and their checkpoint windows, by layer and name."""

import mmap
import os
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Final

from indexer.digest import digest_hex, sha256_digest
from indexer.errors import IndexerError
from indexer.toc import SpanTable
from indexer.toc_codec import decode_head
from lazyfs.cache.files import cache_errors, make_directories, open_regular, plain_name, read_bounded
from lazyfs.cache.scratch import Scratch

_LARGEST_HEAD: Final = 1 << 30


class Tocs:
    """Files `<layer hex>/<name>.toc` and `<name>.windows`.

    A name says what the layer's bytes do not: who made the table, with which settings. Files are replaced
    whole, and not synced: what is loaded is compared with a digest, and one that differs is as good as none.
    """

    def __init__(self, directory: Path, scratch: Scratch) -> None:
        self._directory = directory
        self._scratch = scratch

    def save(
        self, layer_digest: str, name: str, head: bytes, windows: bytes | memoryview | None = None
    ) -> None:
        """Keeps a table of contents; with windows, both appear together: the windows first, then the head.

        Args:
            layer_digest: digest of the layer's blob.
            name: a plain file name.
            head: the encoded table.
            windows: its window file; None leaves the one that is here, for tables fetched without.

        Raises:
            FormatError: not a sha256 digest.
            CacheError: not a plain name, there is no room, or the disk fails.
        """
        head_path = self._path(layer_digest, name, "toc")
        with cache_errors("keep a table of contents"):
            make_directories(head_path.parent, self._directory)
            if windows is not None:
                self._scratch.write(self._path(layer_digest, name, "windows"), windows)
            self._scratch.write(head_path, head)

    def load(self, layer_digest: str, name: str, digest: str | None = None) -> bytes | None:
        """The encoded table; None if it is not here, or is not of `digest`.

        Without a digest, for tables made here and known by name alone, its own checksum must tell damage.

        Raises:
            FormatError: not a sha256 digest.
            CacheError: not a plain name, or the disk fails.
        """
        with cache_errors("load a table of contents"):
            head = read_bounded(self._path(layer_digest, name, "toc"), _LARGEST_HEAD)
        if head is None or (digest is not None and sha256_digest(head) != digest):
            return None
        return head

    def windows(self, layer_digest: str, name: str, digest: str) -> memoryview | None:
        """The window file, mapped; None if it is not here, or is not of `digest`. Reads all of it to know.

        Raises:
            FormatError: not a sha256 digest.
            CacheError: not a plain name, or the disk fails.
        """
        path = self._path(layer_digest, name, "windows")
        with cache_errors("open a window file"):
            view = _map(path)
        if view is None or sha256(view).hexdigest() != digest_hex(digest):
            return None
        return view

    def names(self, layer_digest: str) -> list[str]:
        """The names under which this layer has tables, sorted.

        Raises:
            FormatError: not a sha256 digest.
            CacheError: the disk fails.
        """
        with cache_errors("list tables of contents"):
            return sorted(path.stem for path in (self._directory / digest_hex(layer_digest)).glob("*.toc"))

    def _path(self, layer_digest: str, name: str, ending: str) -> Path:
        return self._directory / digest_hex(layer_digest) / f"{plain_name(name)}.{ending}"


def _map(path: Path) -> memoryview | None:
    descriptor = open_regular(path)
    if descriptor is None:
        return None
    try:
        size = os.fstat(descriptor).st_size
        return memoryview(mmap.mmap(descriptor, size, prot=mmap.PROT_READ) if size else b"")
    finally:
        os.close(descriptor)


def load_spans(tocs: Tocs, layer_digest: str, toc_digest: str) -> SpanTable | None:
    """The span table of the table of contents with a digest; None if it is not here, or damaged.

    Raises:
        FormatError: not sha256 digests.
        CacheError: the disk fails.
    """
    for name in tocs.names(layer_digest):
        data = tocs.load(layer_digest, name, toc_digest)
        if data is not None:
            with suppress(IndexerError):
                return decode_head(data, toc_digest).spans()
            return None
    return None
