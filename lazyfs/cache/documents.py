"""Manifests and configs by digest: what is read is hashed again, so nothing that is kept need be trusted."""

from contextlib import suppress
from pathlib import Path
from typing import Final

from indexer.digest import digest_hex, sha256_digest
from indexer.errors import DigestMismatch
from lazyfs.cache.files import cache_errors, make_directories, read_bounded
from lazyfs.cache.scratch import Scratch

_LARGEST: Final = 64 << 20


class Documents:
    """A content-addressed store of small documents."""

    def __init__(self, root: Path, scratch: Scratch) -> None:
        self._root = root
        self._directory = root / "sha256"
        self._scratch = scratch

    def get(self, digest: str) -> bytes | None:
        """The document of this digest; None if it is not here. A damaged one is removed, where it can be.

        Raises:
            FormatError: not a sha256 digest.
            CacheError: the disk fails.
        """
        path = self._directory / digest_hex(digest)
        with cache_errors("read a document"):
            data = read_bounded(path, _LARGEST)
            if data is not None and sha256_digest(data) == digest:
                return data
        with suppress(OSError):  # of a cache that is read only
            self._scratch.discard(path)
        return None

    def put(self, digest: str, data: bytes) -> None:
        """Keeps a document. Where it is here already, it is written anew.

        Raises:
            FormatError: not a sha256 digest.
            DigestMismatch: the document has another.
            CacheError: there is no room, or the disk fails.
        """
        path = self._directory / digest_hex(digest)
        actual = sha256_digest(data)
        if actual != digest:
            raise DigestMismatch("document for the cache", digest, actual)
        with cache_errors("keep a document"):
            make_directories(self._directory, self._root)
            self._scratch.write(path, data)
