"""Read a metadata image where it lies: nothing is loaded, a look-up touches only the blocks it needs.

Only images as `write` makes them are read. Whatever else comes raises FormatError; every offset is
checked before it is used.
"""

import os
import struct
from collections.abc import Iterator
from stat import S_ISDIR, S_ISLNK
from typing import TYPE_CHECKING, Final, NamedTuple

from indexer.erofs import directory
from indexer.erofs import format as erofs
from indexer.erofs.directory import DIRENT_SIZE
from indexer.erofs.format import BLOCK, SLOT, Device
from indexer.errors import FormatError
from indexer.tree import MAX_DEPTH

if TYPE_CHECKING:
    from mmap import mmap

_NANO: Final = 1_000_000_000
_MAX_LINKS: Final = 40  # as the kernel's MAXSYMLINKS
_MAX_NAMES: Final = 4096
_DATA_HEADER: Final = struct.Struct("<HHH2xQI")  # the front of an inode, up to i_u
_FORMAT: Final = 0o170000
_DIRECTORY: Final = 0o040000
_SYMLINK: Final = 0o120000
_REGULAR: Final = 0o100000
_DEVICES: Final = (0o020000, 0o060000)
_MODES: Final = frozenset(mode for _, mode in erofs.FILE_TYPES.values())
_DOTS: Final = (b".", b"..")
_LAYOUTS: Final = frozenset((erofs.FLAT_PLAIN, erofs.FLAT_INLINE, erofs.CHUNK_BASED))


class Inode(NamedTuple):
    """What stat(2) tells of an inode.

    Attributes:
        nid: its number; the root's is 1.
        mode: kind (S_IFMT) and permissions.
        nlink: names; of a directory 2 and its subdirectories.
        uid: numeric owner.
        gid: numeric group.
        size: bytes of content, of a symlink's target, or of a directory in the image.
        mtime_ns: modification time, nanoseconds since 1970.
        rdev: device number as os.makedev makes it; 0 for anything but a device.
        has_xattrs: whether `xattrs` gives any.
    """

    nid: int
    mode: int
    nlink: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    rdev: int
    has_xattrs: bool


class MetadataImage:
    """A metadata image in any buffer, such as a mapped file.

    Methods take nids that the image itself gave; any other is refused or gives another inode, never a
    crash. All of them raise FormatError where the image is corrupt, and none keeps anything.

    Attributes:
        devices: the layers, sizes rounded up to blocks.
        inode_count: inodes in the image.
        size: bytes of the image itself.
        total_size: bytes of the image and all layers.
        has_any_xattrs: False where no inode has xattrs.
    """

    def __init__(self, buffer: "bytes | bytearray | memoryview | mmap") -> None:
        """Read the superblock and the device table.

        Raises:
            FormatError: this is no image of ours, or one for another version.
        """
        self._view = memoryview(buffer).cast("B")
        self.size = len(self._view)
        if self.size < erofs.SUPERBLOCK_OFFSET + BLOCK:
            raise FormatError("a metadata image without a superblock")
        (
            magic,
            checksum,
            _,
            block_bits,
            extra_slots,
            root,
            self.inode_count,
            _,
            _,
            blocks,
            meta_block,
            _,
            _,
            volume,
            features,
            devices,
            table,
        ) = erofs.SUPERBLOCK.unpack_from(self._view, erofs.SUPERBLOCK_OFFSET)
        if magic != erofs.MAGIC or checksum != self._checksum():
            raise FormatError("a metadata image with a damaged superblock", erofs.SUPERBLOCK_OFFSET)
        if (block_bits, extra_slots, root, features, table, meta_block) != (
            erofs.BLOCK_BITS,
            0,
            erofs.ROOT_NID,
            erofs.FEATURES_INCOMPAT,
            erofs.DEVICE_TABLE_OFFSET // erofs.DEVICE_SLOT.size,
            erofs.meta_block(devices),
        ):
            raise FormatError("a metadata image of another make", erofs.SUPERBLOCK_OFFSET)
        self._meta: int = meta_block * BLOCK
        self._last_nid = (self.size - erofs.INODE.size - self._meta) // SLOT
        if blocks * BLOCK != self.size or self.inode_count * erofs.INODE.size > self.size - self._meta:
            raise FormatError(f"a metadata image of {self.size} bytes where {blocks} blocks were promised")
        self.has_any_xattrs = volume.rstrip(b"\0") != erofs.VOLUME
        self.devices = tuple(self._device(number) for number in range(devices))
        self.total_size = self.size + sum(device.size for device in self.devices)
        if not S_ISDIR(self.inode(erofs.ROOT_NID).mode):
            raise FormatError("a metadata image without a root directory")

    def _checksum(self) -> int:
        block = bytes(self._view[erofs.SUPERBLOCK_OFFSET : erofs.SUPERBLOCK_OFFSET + BLOCK])
        return erofs.checksum(block[:4] + bytes(4) + block[8:])

    def _device(self, number: int) -> Device:
        offset = erofs.DEVICE_TABLE_OFFSET + number * erofs.DEVICE_SLOT.size
        tag, blocks = erofs.DEVICE_SLOT.unpack_from(self._view, offset)
        return Device(tag.rstrip(b"\0"), blocks * BLOCK)

    def close(self) -> None:
        """Let go of the buffer, so that a mapped file can be closed; no other method works then."""
        self._view.release()

    def __repr__(self) -> str:
        return f"<MetadataImage {self.inode_count} inodes, {len(self.devices)} layers, {self.size} bytes>"

    def inode(self, nid: int) -> Inode:
        """What stat(2) tells."""
        (layout, xattr_count, mode, size, address, _, uid, gid, seconds, nanoseconds, nlink) = (
            erofs.INODE.unpack_from(self._view, self._offset(nid))
        )
        kind = mode & _FORMAT
        if kind not in _MODES or layout not in _LAYOUTS:
            raise FormatError(f"inode {nid} has an unknown kind or layout")
        rdev = _decode_device(address) if kind in _DEVICES else 0
        mtime_ns = seconds * _NANO + nanoseconds
        return Inode(nid, mode, nlink, uid, gid, size, mtime_ns, rdev, xattr_count > 0)

    def lookup(self, directory_nid: int, name: bytes) -> int | None:
        """The nid under `name` in a directory, by binary search; None where there is none."""
        data = self._data(directory_nid, _DIRECTORY)
        low, high = 0, data[1] - 1
        while low < high:
            middle = (low + high + 1) >> 1
            if directory.first_name(self._block(data, middle)) <= name:
                low = middle
            else:
                high = middle - 1
        return directory.find(self._block(data, low), name)

    def entries(self, directory_nid: int, cookie: int = 0) -> Iterator[tuple[bytes, int, int]]:
        """(name, nid, next cookie) of a directory's entries in the order of names, without "." and "..".

        Args:
            directory_nid: the directory.
            cookie: 0, or the next cookie of the last entry seen: goes on after it.
        """
        data = self._data(directory_nid, _DIRECTORY)
        first, skipped = divmod(max(cookie, 0), BLOCK)
        skipped //= DIRENT_SIZE
        for number in range(first, data[1]):
            entries = directory.parse(self._block(data, number))
            next_cookie = number * BLOCK + skipped * DIRENT_SIZE
            for name, nid in entries[skipped:]:
                next_cookie += DIRENT_SIZE
                if name not in _DOTS:
                    yield name, nid, next_cookie
            skipped = 0

    def readlink(self, nid: int) -> bytes:
        """A symlink's target."""
        data = self._data(nid, _SYMLINK)
        if data[0] > erofs.MAX_SYMLINK:
            raise FormatError(f"inode {nid} is a symlink of {data[0]} bytes")
        target = b"".join(self._block(data, number) for number in range(data[1]))
        if b"\0" in target:
            raise FormatError(f"inode {nid} is a symlink with a NUL in its target")
        return target

    def extent(self, nid: int) -> tuple[int, int] | None:
        """(layer, uncompressed start) of a regular file's content; None where it has none."""
        offset = self._offset(nid)
        layout, xattr_count, mode, size, address = _DATA_HEADER.unpack_from(self._view, offset)
        if mode & _FORMAT != _REGULAR or size == 0:
            return None
        bits = address & erofs.CHUNK_BITS_MASK
        if layout != erofs.CHUNK_BASED or address != bits | erofs.CHUNK_INDEXES or size > BLOCK << bits:
            raise FormatError(f"inode {nid} has contents that are no single chunk")
        body = offset + erofs.INODE.size + erofs.xattrs_size(xattr_count)
        body += -body % erofs.CHUNK.size
        device, block = erofs.CHUNK.unpack_from(self._view, self._within(body, erofs.CHUNK.size, nid))
        if not 0 < device <= len(self.devices) or block * BLOCK + size > self.devices[device - 1].size:
            raise FormatError(f"inode {nid} has contents outside its layer")
        return device - 1, block * BLOCK

    def xattrs(self, nid: int) -> dict[bytes, bytes]:
        """An inode's xattrs by their full names."""
        offset = self._offset(nid)
        size = erofs.xattrs_size(_DATA_HEADER.unpack_from(self._view, offset)[1])
        if not size:
            return {}
        start = self._within(offset + erofs.INODE.size, size, nid)
        body = bytes(self._view[start : start + size])
        if erofs.XATTR_HEADER.unpack_from(body)[0]:
            raise FormatError(f"inode {nid} has shared xattrs")
        found = {}
        position = erofs.XATTR_HEADER.size
        while position < size:
            name_size, index, value_size = erofs.XATTR_ENTRY.unpack_from(body, position)
            value_start = position + erofs.XATTR_ENTRY.size + name_size
            prefix = erofs.XATTR_PREFIXES.get(index)
            if prefix is None or value_start + value_size > size:
                raise FormatError(f"inode {nid} has damaged xattrs")
            name = prefix + body[position + erofs.XATTR_ENTRY.size : value_start]
            found[name] = body[value_start : value_start + value_size]
            position = value_start + value_size
            position += -position % 4
        return found

    def walk(self) -> Iterator[tuple[bytes, Inode]]:
        """(path, inode) of everything, depth first, in the order of names; the root is b""."""
        root = self.inode(erofs.ROOT_NID)
        yield b"", root
        names_left = (self.size - self._meta) // DIRENT_SIZE  # no honest image has more
        stack = [(b"", self.entries(erofs.ROOT_NID))]
        while stack:
            prefix, entries = stack[-1]
            entry = next(entries, None)
            if entry is None:
                stack.pop()
                continue
            names_left -= 1
            if names_left < 0 or len(stack) > MAX_DEPTH:
                raise FormatError("a metadata image with a cycle of directories")
            inode = self.inode(entry[1])
            path = prefix + entry[0]
            yield path, inode
            if S_ISDIR(inode.mode):
                stack.append((path + b"/", self.entries(inode.nid)))

    def resolve(self, path: bytes, *, follow: bool = True) -> int | None:
        """The nid that `path` leads to inside the image, or None where nothing can be opened by it.

        Symlinks in the middle are followed as a process with this root would: none leaves it. None also
        comes for a path through a file, and after 40 symlinks or 4096 names.

        Args:
            path: components from the root; a leading "/" says nothing.
            follow: whether a symlink at the end is followed as well.
        """
        above = [erofs.ROOT_NID]  # the directories from the root to where we stand
        left = path.split(b"/")[::-1]
        links = names = 0
        while left:
            name = left.pop()
            names += 1
            if names > _MAX_NAMES:
                return None
            if name in (b"", b"."):
                continue
            if name == b"..":
                above = above[:-1] or above
                continue
            nid = self.lookup(above[-1], name)
            if nid is None:
                return None
            mode = self.inode(nid).mode
            if S_ISDIR(mode):
                above.append(nid)
            elif S_ISLNK(mode) and (follow or left):
                links += 1
                if links > _MAX_LINKS:
                    return None
                target = self.readlink(nid)
                if target.startswith(b"/"):
                    above = [erofs.ROOT_NID]
                left += target.split(b"/")[::-1]
            else:
                return None if left else nid
        return above[-1]

    def _offset(self, nid: int) -> int:
        if not 0 < nid <= self._last_nid:
            raise FormatError(f"inode {nid} lies outside the image")
        return self._meta + nid * SLOT

    def _within(self, offset: int, size: int, nid: int) -> int:
        if offset + size > self.size:
            raise FormatError(f"inode {nid} has data outside the image")
        return offset

    def _data(self, nid: int, kind: int) -> tuple[int, int, int, int]:
        """(size, blocks, offset of the first block, offset of the last block) of an inode's data."""
        offset = self._offset(nid)
        layout, xattr_count, mode, size, address = _DATA_HEADER.unpack_from(self._view, offset)
        if mode & _FORMAT != kind or size == 0:
            raise FormatError(f"inode {nid} is not of the kind that its use needs, or empty")
        start = address * BLOCK
        last = full = (size - 1) // BLOCK
        if layout == erofs.FLAT_INLINE:
            last = offset + erofs.INODE.size + erofs.xattrs_size(xattr_count)
        elif layout == erofs.FLAT_PLAIN:
            last = start + full * BLOCK
        else:
            raise FormatError(f"inode {nid} has an unknown layout")
        if start + full * BLOCK > self.size or last + size - full * BLOCK > self.size:
            raise FormatError(f"inode {nid} has data outside the image")
        return size, full + 1, start, last

    def _block(self, data: tuple[int, int, int, int], number: int) -> bytes:
        size, blocks, start, last = data
        if number < blocks - 1:
            offset = start + number * BLOCK
            return bytes(self._view[offset : offset + BLOCK])
        return bytes(self._view[last : last + size - number * BLOCK])


def _decode_device(encoded: int) -> int:
    """What os.makedev makes, from a number that the kernel's new_encode_dev() packed."""
    return os.makedev(encoded >> 8 & 0xFFF, encoded & 0xFF | encoded >> 12 & 0xFFF00)
