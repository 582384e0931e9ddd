"""What `lazyfs mount --driver erofs` needs of FUSE, by pyfuse3: layers as files only the kernel looks for."""

import errno
import logging
import stat
from typing import Final

import pyfuse3
from pyfuse3 import FileHandleT, FileNameT, FUSEError, InodeT, ModeT

from indexer.toc import BLOCK_SIZE
from lazyfs.mount.contents import Contents
from lazyfs.mount.forest import ROOT, Forest
from lazyfs.mount.handlers import ReadOnlyOperations, answering
from lazyfs.mount.wire import FOREVER_S

_DIRECTORY_MODE: Final = stat.S_IFDIR | 0o500
_FILE_MODE: Final = stat.S_IFREG | 0o400

_log = logging.getLogger(__name__)


class LayerFileOperations(ReadOnlyOperations):
    """Answers for a forest. Its directory is never listed: names are known to whoever made the forest."""

    def __init__(self, forest: Forest, read_timeout_s: float) -> None:
        super().__init__(Contents(forest.readers, read_timeout_s, outlast_tasks=True), _log)
        self._forest = forest

    @answering
    async def lookup(
        self, parent_inode: InodeT, name: FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """The file with this name.

        Raises:
            FUSEError: ENOENT, there is none; the kernel does not remember that, since one may come.
        """
        del ctx
        if name == b".":
            return self._attributes(parent_inode)
        inode = self._forest.find(name) if parent_inode == ROOT else None
        if inode is None:
            raise FUSEError(errno.ENOENT)
        return self._attributes(inode)

    @answering
    async def getattr(self, inode: InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """What stat(2) gives: the size is all that counts."""
        del ctx
        return self._attributes(inode)

    @answering
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes | memoryview:  # type: ignore[override]  # any buffer will do
        """Bytes of a layer's address space, fewer than `size` only at its end.

        Raises:
            FUSEError: ESTALE, the file was taken away.
        """
        file = self._forest.files.get(fh)
        if file is None:
            raise FUSEError(errno.ESTALE)
        end = min(off + size, file.size)
        return await self.contents.read(fh, off, end - off) if off < end else b""

    def _attributes(self, inode: int) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = InodeT(inode)
        entry.entry_timeout = entry.attr_timeout = FOREVER_S
        if inode == ROOT:
            entry.st_mode = ModeT(_DIRECTORY_MODE)
            entry.st_nlink = 2
            return entry
        file = self._forest.files.get(inode)
        if file is None:
            raise FUSEError(errno.ESTALE)
        entry.st_mode = ModeT(_FILE_MODE)
        entry.st_size = file.size
        entry.st_blocks = file.size // BLOCK_SIZE
        return entry
