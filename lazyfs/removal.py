"""Removes directories that strangers filled: however deep, whatever their modes, wherever links lead."""

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_DEEPEST: Final = 64
"""Levels that are open at once. What lies deeper is moved up first: neither our stack nor our descriptors go
as deep as a container can."""

_ENTER: Final = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(top: Path) -> None:
    """Remove a directory with all below it. What is gone already need not be removed.

    Raises:
        OSError: why the first thing that cannot be removed cannot; everything else is gone.
    """
    try:
        descriptor = _entered(os.fspath(top), None)
    except FileNotFoundError:
        return
    try:
        removal = _Removal(descriptor)
        removal.run()
    finally:
        os.close(descriptor)
    with removal.noting():
        top.rmdir()
    if removal.refused is not None:
        raise removal.refused


class _Removal:
    """Empties a directory.

    Attributes:
        refused: why the first thing that could not be removed could not.
    """

    def __init__(self, top: int) -> None:
        self._top = top
        self._moved: list[str] = []
        self.refused: OSError | None = None

    def run(self) -> None:
        self._empty(self._top, 0)
        while self._moved:
            with self.noting():
                self._remove(self._moved.pop(), self._top, 0)

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Goes on after a refusal; that somebody else was faster is none."""
        try:
            yield
        except FileNotFoundError:
            pass
        except OSError as error:
            self.refused = self.refused or error

    def _empty(self, directory: int, depth: int) -> None:
        for name in os.listdir(directory):
            with self.noting():
                self._remove(name, directory, depth)

    def _remove(self, name: str, directory: int, depth: int) -> None:
        try:
            os.unlink(name, dir_fd=directory)
        except IsADirectoryError:
            self._remove_directory(name, directory, depth)

    def _remove_directory(self, name: str, directory: int, depth: int) -> None:
        descriptor = _entered(name, directory)
        try:
            if depth == _DEEPEST:
                moved = secrets.token_hex(8)
                os.rename(name, moved, src_dir_fd=directory, dst_dir_fd=self._top)
                self._moved.append(moved)
                return
            self._empty(descriptor, depth + 1)
        finally:
            os.close(descriptor)
        os.rmdir(name, dir_fd=directory)


def _entered(name: str, directory: int | None) -> int:
    """A descriptor of a directory, which we may read and change from now on if it is ours."""
    place = os.open(name, os.O_PATH | _ENTER, dir_fd=directory)
    try:
        if os.fstat(place).st_mode & stat.S_IRWXU != stat.S_IRWXU:
            os.chmod(f"/proc/self/fd/{place}", stat.S_IRWXU)  # noqa: PTH101  # of the very directory
        return os.open(".", os.O_RDONLY | _ENTER, dir_fd=place)
    finally:
        os.close(place)
