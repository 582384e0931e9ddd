"""Compiled metadata images by key."""

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final

from lazyfs.cache.files import cache_errors
from lazyfs.cache.scratch import Scratch
from lazyfs.errors import CacheError

_log = logging.getLogger(__name__)

_IN_MEMORY: Final = Path("/proc/self/fd")
_KEY: Final = re.compile(r"[0-9a-f]{16,128}", re.ASCII)


class Images:
    """Files `<key>.erofs`, each whole and on disk before it has its name.

    A key stands for all that went into the image, so an image that is here is the image. One that the disk
    has no room for is kept in memory, as long as this object lives, and has a path of this process alone.
    """

    def __init__(self, directory: Path, scratch: Scratch) -> None:
        self._directory = directory
        self._scratch = scratch
        self._homeless: dict[str, int] = {}

    def __del__(self) -> None:
        for descriptor in self._homeless.values():
            os.close(descriptor)

    def path(self, key: str) -> Path | None:
        """Where the image of this key is; None if it is not here.

        Raises:
            CacheError: not a key in lower-case hexadecimal.
        """
        path = self._path(key)
        if key in self._homeless:
            return _path_of(self._homeless[key])
        return path if path.is_file() and not path.is_symlink() else None

    def publish(self, key: str, writer: Callable[[BinaryIO], object]) -> Path:
        """Where the image of this key is after `writer` has written it to a file. Blocks for the disk.

        The image is synced before it is named: nothing in it says whether a power cut left it whole.

        Raises:
            CacheError: not a key in lower-case hexadecimal, or there is no room in memory either.
        """
        path = self._path(key)
        try:
            with cache_errors("keep a metadata image"), self._scratch.file() as (descriptor, made):
                with os.fdopen(os.dup(descriptor), "wb") as file:
                    writer(file)
                os.fsync(descriptor)
                made.rename(path)
        except CacheError as error:
            _log.warning("%s; it is kept in memory", error)
            return self._keep_in_memory(key, writer)
        return path

    def _keep_in_memory(self, key: str, writer: Callable[[BinaryIO], object]) -> Path:
        with cache_errors("keep a metadata image in memory"):
            descriptor = os.memfd_create("lazyfs-metadata", os.MFD_CLOEXEC)
            try:
                with os.fdopen(os.dup(descriptor), "wb") as file:
                    writer(file)
            except BaseException:
                os.close(descriptor)
                raise
        old = self._homeless.pop(key, None)
        if old is not None:
            os.close(old)
        self._homeless[key] = descriptor
        return _path_of(descriptor)

    def _path(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise CacheError(f"not an image's key: {key[:100]!r}")
        return self._directory / f"{key}.erofs"


def _path_of(descriptor: int) -> Path:
    return _IN_MEMORY / str(descriptor)


def is_lasting(path: Path) -> bool:
    """Whether an image's path stands for the same in other processes, as of one on disk."""
    return path.parent != _IN_MEMORY
