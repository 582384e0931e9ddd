"""The `fuse` driver: the whole merged tree, served from its metadata image and its layers.

Owners are shown as the image has them, also where an ordinary user mounts: the tree is then one of other
people's files to its own user, which the kernel judges as such. Inode numbers are the image's, so that they
are the same in every mount of it; its root is number 1, as FUSE wants it.
"""

import errno
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from indexer.erofs.read import Inode, MetadataImage
from indexer.toc import BLOCK_SIZE
from indexer.tree import MAX_NAME
from lazyfs.mount import wire
from lazyfs.mount.answers import Answers, Data, Handler, Later
from lazyfs.mount.contents import Contents
from lazyfs.mount.errors import Refused
from lazyfs.mount.wire import Opcode, OpenFlag, ReadIn
from lazyfs.mount.wire_init import InitFlag

_DOTS = (b".", b"..")


class TreeAnswers(Answers):
    """Answers for a merged tree.

    The kernel is told once not to ask about opening and closing (ENOSYS): it opens by itself then, and keeps
    listings and pages for as long as it likes. Where no inode of the image has xattrs, it is told once not to
    ask for any; else it is also told to enforce POSIX ACLs.

    A mount may be cloned with other owners (MOUNT_ATTR_IDMAP, Linux 6.12), as it is one whose permissions the
    kernel checks; requests then come without their senders' numbers.
    """

    flags = (
        Answers.flags
        | InitFlag.DO_READDIRPLUS
        | InitFlag.CACHE_SYMLINKS
        | InitFlag.INIT_EXT
        | InitFlag.ALLOW_IDMAP
    )

    def __init__(self, image: MetadataImage, contents: Contents) -> None:
        super().__init__(contents)
        self._image = image
        if image.has_any_xattrs:
            self.flags |= InitFlag.POSIX_ACL

    def handlers(self) -> Mapping[int, Handler]:
        """What only trees are asked for."""
        return {
            Opcode.OPEN: self._open,
            Opcode.OPENDIR: self._opendir,
            Opcode.READLINK: self._readlink,
            Opcode.READDIR: partial(self._list, wire.encode_dirent),
            Opcode.READDIRPLUS: partial(self._list, wire.encode_direntplus),
            Opcode.STATFS: self._statfs,
            Opcode.GETXATTR: self._getxattr,
            Opcode.LISTXATTR: self._listxattr,
        }

    def lookup(self, parent: int, name: bytes) -> bytes:
        """The entry `name`; that there is none is remembered by the kernel too.

        Raises:
            Refused: ENAMETOOLONG, which FUSE leaves to us.
        """
        if len(name) > MAX_NAME:
            raise Refused(errno.ENAMETOOLONG)
        # "." of a file, too, is how a file handle is opened again (name_to_handle_at(2)).
        nid = parent if name == b"." else self._image.lookup(parent, name)
        return wire.NO_ENTRY if nid is None else wire.encode_entry(self._image.inode(nid))

    def attributes(self, nodeid: int) -> bytes:
        """What stat(2) gives."""
        return wire.encode_attributes(self._image.inode(nodeid))

    def read(self, nodeid: int, asked: ReadIn) -> Data | Later:
        """Bytes of a regular file, fewer than were asked for only at its end."""
        extent = self._image.extent(nodeid)
        size = min(asked.size, self._image.inode(nodeid).size - asked.offset)
        if extent is None or size <= 0:
            return b""
        number, start = extent[0], extent[1] + asked.offset
        data = self.contents.read_nowait(number, start, size)
        return partial(self.contents.wait, number, start, size, whole=asked.direct) if data is None else data

    def _open(self, _nodeid: int, _body: memoryview) -> bytes:
        if self.offers(InitFlag.NO_OPEN_SUPPORT):
            raise Refused(errno.ENOSYS)
        return wire.encode_open(OpenFlag.KEEP_CACHE)

    def _opendir(self, _nodeid: int, _body: memoryview) -> bytes:
        if self.offers(InitFlag.NO_OPENDIR_SUPPORT):
            raise Refused(errno.ENOSYS)
        return wire.encode_open(OpenFlag.KEEP_CACHE | OpenFlag.CACHE_DIR)

    def _list(self, encode: Callable[[bytes, Inode, int], bytes], nodeid: int, body: memoryview) -> bytes:
        """As many entries as there is room for. The dots are at 0 and 1, others at the image's cookie + 2."""
        offset, room, *_ = wire.decode_read(body)
        inode = self._image.inode
        entries = []
        for name, nid, after in self._entries(nodeid, offset):
            entry = encode(name, inode(nid), after)
            room -= len(entry)
            if room < 0:
                break
            entries.append(entry)
        return b"".join(entries)

    def _entries(self, nodeid: int, offset: int) -> Iterator[tuple[bytes, int, int]]:
        for position in range(offset, 2):
            yield _DOTS[position], self._image.lookup(nodeid, _DOTS[position]) or nodeid, position + 1
        for name, nid, cookie in self._image.entries(nodeid, max(offset - 2, 0)):
            yield name, nid, cookie + 2

    def _readlink(self, nodeid: int, _body: memoryview) -> bytes:
        return self._image.readlink(nodeid)

    def _getxattr(self, nodeid: int, body: memoryview) -> bytes:
        size, name = wire.decode_getxattr(body)
        value = self._xattrs(nodeid).get(name)
        if value is None:
            raise Refused(errno.ENODATA)
        return _sized(value, size)

    def _listxattr(self, nodeid: int, body: memoryview) -> bytes:
        size, _ = wire.decode_getxattr(body)
        return _sized(b"".join(name + b"\0" for name in self._xattrs(nodeid)), size)

    def _xattrs(self, nodeid: int) -> dict[bytes, bytes]:
        if not self._image.has_any_xattrs:
            raise Refused(errno.ENOSYS)
        return self._image.xattrs(nodeid)

    def _statfs(self, _nodeid: int, _body: memoryview) -> bytes:
        """The size of the image and all its layers, as the kernel's EROFS has it."""
        return wire.encode_statfs(
            block_size=BLOCK_SIZE,
            blocks=self._image.total_size // BLOCK_SIZE,
            files=self._image.inode_count,
            longest_name=MAX_NAME,
        )


def _sized(value: bytes, size: int) -> bytes:
    answer = wire.encode_xattr(value, size)
    if answer is None:
        raise Refused(errno.ERANGE)
    return answer
