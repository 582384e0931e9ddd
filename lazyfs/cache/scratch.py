"""The tmp/ directory: where things are made, each under a lock that dies with its maker."""

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Final

from lazyfs.cache.files import DIRECTORY_MODE, create_private, is_at, write_all
from lazyfs.errors import CacheError
from lazyfs.flock import try_flock

_ATTEMPTS: Final = 100


class Scratch:
    """Files and directories under construction, in the same file system as their destination.

    Each is flocked by its maker from birth, so that `sweep` can tell what a dead process left behind.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"Scratch({str(self.path)!r})"

    def file(self) -> AbstractContextManager[tuple[int, Path]]:
        """A new empty file: its descriptor, closed at the end, and its path, removed unless renamed away.

        Raises:
            OSError: it cannot be made.
            CacheError: sweepers take every one away; something is wrong.
        """
        return self._claimed(create_private)

    def directory(self) -> AbstractContextManager[tuple[int, Path]]:
        """A new empty directory: the descriptor that holds it, and its path, with the rules of `file`."""
        return self._claimed(_create_directory)

    @contextmanager
    def _claimed(self, create: Callable[[Path], int]) -> Iterator[tuple[int, Path]]:
        descriptor, path = self._claim(create)
        try:
            yield descriptor, path
        finally:
            try:
                _remove(path)
            finally:
                os.close(descriptor)

    def _claim(self, create: Callable[[Path], int]) -> tuple[int, Path]:
        for _ in range(_ATTEMPTS):
            path = self.path / secrets.token_hex(16)
            try:
                descriptor = create(path)
            except FileNotFoundError:
                if not self.path.is_dir():
                    raise
                continue  # swept between mkdir and open
            if try_flock(descriptor) and is_at(descriptor, path):
                return descriptor, path
            os.close(descriptor)
        raise CacheError(f"nothing stays in {self.path} for long enough to be locked")

    def write(self, target: Path, data: bytes | memoryview) -> None:
        """Puts a file with `data` at `target`, whole or not at all as far as any process can see.

        A power cut may leave an empty or torn file there: readers check what they read.

        Raises:
            OSError: it cannot be written.
        """
        with self.file() as (descriptor, path):
            write_all(descriptor, data, 0)
            path.rename(target)

    def discard(self, path: Path) -> None:
        """Takes a file or directory out of its place at once, then removes it; nothing there is no error.

        Processes that have it open keep it until they close it.

        Raises:
            OSError: it cannot be moved.
        """
        grave = self.path / secrets.token_hex(16)
        with suppress(FileNotFoundError):
            path.rename(grave)
            _remove(grave)

    def sweep(self) -> int:
        """Removes what dead processes left; returns how many things that were."""
        swept = 0
        for path in list(self.path.iterdir()):
            with suppress(OSError):
                descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    if try_flock(descriptor):
                        _remove(path)
                        swept += 1
                finally:
                    os.close(descriptor)
        return swept


def _create_directory(path: Path) -> int:
    path.mkdir(mode=DIRECTORY_MODE)
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
