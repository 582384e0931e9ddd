"""Layers as files in a flat directory, which may come and go while the kernel asks for them."""

import errno
import stat
from collections.abc import Mapping
from functools import partial
from typing import Final

from indexer.erofs.read import Inode
from lazyfs.mount import wire
from lazyfs.mount.answers import Answers, Data, Handler, Later
from lazyfs.mount.contents import Contents
from lazyfs.mount.errors import Refused
from lazyfs.mount.forest import ROOT, Forest, VirtualFile
from lazyfs.mount.wire import Opcode, OpenFlag, ReadIn

_DIRECTORY: Final = stat.S_IFDIR | 0o500
_FILE: Final = stat.S_IFREG | 0o400


class ForestAnswers(Answers):
    """Answers for a forest. Its directory is never listed: names are known to whoever made the forest."""

    def __init__(self, forest: Forest, read_timeout_s: float) -> None:
        super().__init__(Contents(forest.readers, read_timeout_s))
        self._forest = forest

    def handlers(self) -> Mapping[int, Handler]:
        """Opening and closing, which are counted."""
        return {Opcode.OPEN: self._open, Opcode.RELEASE: self._release}

    def lookup(self, parent: int, name: bytes) -> bytes:
        """The file with this name.

        Raises:
            Refused: ENOENT, there is none; the kernel does not remember that, since one may come.
        """
        if name == b".":  # how a file handle is opened again (name_to_handle_at(2))
            return wire.encode_entry(self._inode(parent))
        found = self._forest.find(name) if parent == ROOT else None
        if found is None:
            raise Refused(errno.ENOENT)
        return wire.encode_entry(self._inode(found))

    def attributes(self, nodeid: int) -> bytes:
        """The size is all that counts.

        Raises:
            Refused: ESTALE, the file was taken away.
        """
        return wire.encode_attributes(self._inode(nodeid))

    def read(self, nodeid: int, asked: ReadIn) -> Data | Later:
        """Bytes of a layer's address space, fewer than were asked for only at its end.

        They are for EROFS, which passes the page cache by for what it wants in its own.

        Raises:
            Refused: ESTALE, the file was taken away.
        """
        file = self._file(nodeid)
        start, end = asked.offset, min(asked.offset + asked.size, file.size)
        if start >= end:
            return b""
        data = self.contents.read_nowait(nodeid, start, end - start)
        return partial(self.contents.wait, nodeid, start, end - start) if data is None else data

    def _open(self, nodeid: int, _body: memoryview) -> bytes:
        self._file(nodeid).users(1)
        return wire.encode_open(OpenFlag.KEEP_CACHE)

    def _release(self, nodeid: int, _body: memoryview) -> bytes:
        file = self._forest.files.get(nodeid)
        if file is not None:
            file.users(-1)
        return b""

    def _inode(self, nodeid: int) -> Inode:
        if nodeid == ROOT:
            return Inode(ROOT, _DIRECTORY, 2, 0, 0, 0, 0, 0, has_xattrs=False)
        return Inode(nodeid, _FILE, 1, 0, 0, self._file(nodeid).size, 0, 0, has_xattrs=False)

    def _file(self, nodeid: int) -> VirtualFile:
        file = self._forest.files.get(nodeid)
        if file is None:
            raise Refused(errno.ESTALE)
        return file
