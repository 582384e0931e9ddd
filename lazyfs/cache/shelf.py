"""Small collections of files by digest of what they belong to: traces and boot packs of images."""

from pathlib import Path
from typing import Final

from indexer.digest import digest_hex
from lazyfs.cache.files import cache_errors, make_directories, plain_name, read_bounded
from lazyfs.cache.scratch import Scratch

_LARGEST: Final = 1 << 30


class Shelf:
    """Files `<hex>/<name>`; of each owner only the newest few are kept.

    Files are replaced whole, and not synced: what is loaded must tell damage by itself.
    """

    def __init__(self, directory: Path, scratch: Scratch) -> None:
        self._directory = directory
        self._scratch = scratch

    def save(self, digest: str, name: str, data: bytes | memoryview, keep: int) -> None:
        """Keeps a file, and of its owner's others the newest `keep` - 1.

        Raises:
            FormatError: not a sha256 digest.
            CacheError: not a plain name, there is no room, or the disk fails.
        """
        path = self._path(digest, name)
        with cache_errors("keep a file"):
            make_directories(path.parent, self._directory)
            self._scratch.write(path, data)
        for old in self.names(digest)[keep:]:
            self.remove(digest, old)

    def load(self, digest: str, name: str) -> bytes | None:
        """A file; None if it is not here.

        Raises:
            FormatError: not a sha256 digest.
            CacheError: not a plain name, or the disk fails.
        """
        with cache_errors("load a file"):
            return read_bounded(self._path(digest, name), _LARGEST)

    def names(self, digest: str) -> list[str]:
        """The names of an owner's files, the newest first.

        Raises:
            FormatError: not a sha256 digest.
            CacheError: the disk fails.
        """
        found = []
        with cache_errors("list files"):
            for path in (self._directory / digest_hex(digest)).glob("*"):
                try:
                    found.append((path.lstat().st_mtime_ns, path.name))
                except FileNotFoundError:
                    continue
        return [name for _, name in sorted(found, reverse=True)]

    def remove(self, digest: str, name: str) -> None:
        """Removes a file, if it is here.

        Raises:
            FormatError: not a sha256 digest.
            CacheError: not a plain name, or the disk fails.
        """
        with cache_errors("remove a file"):
            self._scratch.discard(self._path(digest, name))

    def _path(self, digest: str, name: str) -> Path:
        return self._directory / digest_hex(digest) / plain_name(name)
