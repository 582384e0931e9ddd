"""The `fuse` driver: the whole merged tree, served from its metadata image and its layers.

Owners are shown as the image has them, also where an ordinary user mounts: the tree is then one of other
people's files to its own user, which the kernel judges as such. Inode numbers are the image's, so that they
are the same in every mount of it; its root is number 1, as FUSE wants it.
"""

import errno
import logging

import pyfuse3
from pyfuse3 import FileHandleT, FileNameT, FlagT, FUSEError, InodeT, ModeT, XAttrNameT

from indexer.erofs_read import Inode, MetadataImage
from indexer.toc import BLOCK_SIZE
from indexer.tree import MAX_NAME
from lazyfs.mount.contents import Contents
from lazyfs.mount.handlers import FOREVER_S, ReadOnlyOperations, answering, negative_entry

_PAGE = 4096

_log = logging.getLogger(__name__)


class TreeOperations(ReadOnlyOperations):
    """Answers for a merged tree.

    Where no inode of the image has xattrs, the kernel is told once not to ask for any (ENOSYS); else it is
    also told to enforce POSIX ACLs.
    """

    def __init__(self, image: MetadataImage, contents: Contents) -> None:
        super().__init__(contents, _log)
        self._image = image
        self._failed: set[int] = set()  # files of which a read has failed since they were opened
        self.enable_acl = image.has_any_xattrs

    @answering
    async def lookup(
        self, parent_inode: InodeT, name: FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """The entry `name`; that there is none is remembered by the kernel too.

        Raises:
            FUSEError: ENAMETOOLONG, which FUSE leaves to us.
        """
        del ctx
        if len(name) > MAX_NAME:
            raise FUSEError(errno.ENAMETOOLONG)
        if name == b".":  # of a file, too: how a file handle is opened again (name_to_handle_at(2))
            return self._attributes(parent_inode)
        nid = self._image.lookup(parent_inode, name)
        return negative_entry() if nid is None else self._attributes(nid)

    @answering
    async def getattr(self, inode: InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """What stat(2) gives."""
        del ctx
        return self._attributes(inode)

    @answering
    async def readlink(self, inode: InodeT, ctx: pyfuse3.RequestContext) -> FileNameT:
        """A symlink's target."""
        del ctx
        return self._image.readlink(inode)

    @answering
    async def readdir(self, fh: FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """Entries with their attributes; "." and ".." are at 0 and 1, others at the image's cookie + 2."""
        for position, name in enumerate((b".", b"..")):
            if start_id <= position:
                nid = self._image.lookup(fh, name) or fh
                if not pyfuse3.readdir_reply(token, name, self._attributes(nid), position + 1):
                    return
        for name, nid, cookie in self._image.entries(fh, max(start_id - 2, 0)):
            if not pyfuse3.readdir_reply(token, name, self._attributes(nid), cookie + 2):
                return

    @answering
    async def open(self, inode: InodeT, flags: FlagT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """Opens for reading; the kernel keeps what it has cached, unless a read of the file has failed.

        A page that could not be read stays in its cache, and any later reader of it waits unkillably
        (`failed_reads`), unless all pages are dropped.

        Raises:
            FUSEError: EROFS, if it is to be written.
        """
        opened = await super().open(inode, flags, ctx)
        extent = self._image.extent(inode) if inode in self._failed else None
        if extent is not None:
            number, start = extent
            self.contents.try_again(number, start, start + self._image.inode(inode).size)
            self._failed.remove(inode)
            opened.keep_cache = False
        return opened

    @answering
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes | memoryview:  # type: ignore[override]  # any buffer will do
        """Bytes of a regular file, fewer than `size` only at its end."""
        extent = self._image.extent(fh)
        end = min(off + size, self._image.inode(fh).size)
        if extent is None or off >= end:
            return b""
        number, start = extent
        try:
            return await self.contents.read(number, start + off, end - off)
        except Exception:
            self._failed.add(fh)
            raise

    @answering
    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: pyfuse3.RequestContext) -> bytes:
        """The value of an xattr, byte for byte the layer's.

        Raises:
            FUSEError: ENODATA, there is no such xattr; ENOSYS, the image has none at all.
        """
        del ctx
        value = self._xattrs(inode).get(name)
        if value is None:
            raise FUSEError(errno.ENODATA)
        return value

    @answering
    async def listxattr(self, inode: InodeT, ctx: pyfuse3.RequestContext) -> list[XAttrNameT]:
        """The names of an inode's xattrs.

        Raises:
            FUSEError: ENOSYS, the image has none at all.
        """
        del ctx
        return list(self._xattrs(inode))

    @answering
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """The size of the image and all its layers, as the kernel's EROFS has it; nothing is free."""
        del ctx
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = BLOCK_SIZE
        data.f_blocks = self._image.total_size // BLOCK_SIZE
        data.f_files = self._image.inode_count
        data.f_namemax = MAX_NAME
        return data

    def _xattrs(self, inode: InodeT) -> dict[bytes, bytes]:
        if not self._image.has_any_xattrs:
            raise FUSEError(errno.ENOSYS)
        return self._image.xattrs(inode)

    def _attributes(self, nid: int) -> pyfuse3.EntryAttributes:
        return attributes_of(self._image.inode(nid))


def attributes_of(inode: Inode) -> pyfuse3.EntryAttributes:
    """What the kernel gets of an inode, for good. Access and change times are the modification time."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = InodeT(inode.nid)
    entry.st_mode = ModeT(inode.mode)
    entry.st_nlink = inode.nlink
    entry.st_uid = inode.uid
    entry.st_gid = inode.gid
    entry.st_rdev = inode.rdev
    entry.st_size = inode.size
    entry.st_blksize = _PAGE
    entry.st_blocks = -(-inode.size // 512)  # of 512 bytes on Linux, whatever a block is elsewhere (stat(2))
    entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = inode.mtime_ns
    entry.entry_timeout = entry.attr_timeout = FOREVER_S
    return entry
