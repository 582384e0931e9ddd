"""A flat directory of virtual files, which may come and go: one per layer, for the kernel's EROFS to read.

A file's name is its inode number in decimal, and no number is given twice: whatever the kernel remembers of
a file that is gone can be mistaken for no other.
"""

from collections.abc import Callable
from types import MappingProxyType
from typing import Final, NamedTuple

from lazyfs.mount.contents import LayerReader

ROOT: Final = 1


def nobody_counts(_change: int) -> None:
    """Counts nothing."""


class VirtualFile(NamedTuple):
    """What a file shows.

    Attributes:
        reader: gives its bytes.
        size: how many, in whole blocks.
        users: told +1 when the file is opened, and -1 when it is closed for good.
    """

    reader: LayerReader
    size: int
    users: Callable[[int], None] = nobody_counts


class Forest:
    """The files, by inode number.

    Attributes:
        files: the present ones.
        readers: their readers.
    """

    def __init__(self, last: int = ROOT) -> None:
        """Empty.

        Args:
            last: the highest number that was given before to a kernel that may remember it.
        """
        self._files: dict[int, VirtualFile] = {}
        self._readers: dict[int, LayerReader] = {}
        self._last = last
        self.files = MappingProxyType(self._files)
        self.readers = MappingProxyType(self._readers)

    def __repr__(self) -> str:
        return f"<Forest of {len(self._files)} files, the last one was {self._last}>"

    @property
    def last(self) -> int:
        """The highest number that was ever given."""
        return self._last

    def add(self, file: VirtualFile) -> int:
        """A new file's inode number."""
        self.put_back(self._last + 1, file)
        return self._last

    def put_back(self, inode: int, file: VirtualFile) -> None:
        """Adds a file under the number that another forest gave it, whose files the kernel still reads."""
        self._last = max(self._last, inode)
        self._files[inode] = file
        self._readers[inode] = file.reader

    def remove(self, inode: int) -> None:
        """Takes a file away. Whoever has it open gets errors from now on."""
        del self._files[inode], self._readers[inode]

    def find(self, name: bytes) -> int | None:
        """The inode number of the file with this name, or None."""
        if not name.isdigit() or name.startswith(b"0") or len(name) > 19:  # as 2**63 has
            return None
        inode = int(name)
        return inode if inode in self._files else None
