"""A merged tree becomes an EROFS image without contents: `format` has the layout.

Two passes over the tree: `layout` gives every inode its place, then this writes from front to back.
Between them stand, per inode, a reference and, per directory, its names in order; the image itself is
never in memory.
"""

import struct
from collections.abc import Sequence
from hashlib import sha256
from typing import BinaryIO, Final

from indexer.erofs import format as erofs
from indexer.erofs.format import BLOCK, SLOT, Device
from indexer.erofs.layout import Directory, Plan, Shape, plan_image, shape_of
from indexer.errors import FormatError, LimitExceeded
from indexer.toc import REGULAR, Kind
from indexer.tree import Node

_BUFFER_SIZE: Final = 1 << 20
_NANO: Final = 1_000_000_000
_MAX_ID: Final = 0xFFFF_FFFE  # the number above it stands for "no owner"


def write_image(root: Node, devices: Sequence[Device], out: BinaryIO) -> None:
    """Write the image of a tree to `out`, from front to back.

    The same tree and devices give the same bytes. Sets `nid` of every node. After an error, what was
    written is no image.

    Args:
        root: the tree, as `merge` makes it: `nlink` of all nodes is counted.
        devices: the layers that hold the contents, in the order of their numbers.
        out: what takes the bytes.

    Raises:
        LimitExceeded: something is larger than its field, or the tree too deep.
        FormatError: content outside its layer or off a block boundary, or a value that no file can have.
    """
    if len(devices) > erofs.MAX_DEVICES:
        raise LimitExceeded(f"more than {erofs.MAX_DEVICES} layers")
    for device in devices:
        _check_device(device)
    writer = _Writer(plan_image(root), devices, out)
    try:
        writer.write()
    except struct.error as error:
        raise FormatError(f"a number of an inode does not fit its field: {error}") from error


def _check_device(device: Device) -> None:
    if len(device.tag) > erofs.MAX_TAG or device.tag.endswith(b"\0"):
        raise FormatError(f"not a device's tag: {device.tag[:100]!r}")
    if not 0 <= device.size <= erofs.MAX_BLOCKS * BLOCK:
        raise LimitExceeded(f"a layer of {device.size} bytes: more than {erofs.MAX_BLOCKS} blocks")


class _Writer:
    """Writes one image.

    Data blocks follow the inode area in the order of their inodes, so that an inode's block is the count
    of those before it.
    """

    def __init__(self, plan: Plan, devices: Sequence[Device], out: BinaryIO) -> None:
        self._plan = plan
        self._devices = devices
        self._out = out
        self._meta_block = erofs.meta_block(len(devices))
        self._next_block = self._meta_block + plan.blocks
        self._outside: list[tuple[Node, Shape, Directory | None]] = []

    def write(self) -> None:
        """Write all, from front to back."""
        self._out.write(self._head())
        self._write_inodes()
        for node, shape, directory in self._outside:
            self._out.write(_data_blocks(node, shape, directory))

    def _head(self) -> bytes:
        """Everything before the inode area."""
        plan = self._plan
        slots = b"".join(
            erofs.DEVICE_SLOT.pack(device.tag, -(-device.size // BLOCK)) for device in self._devices
        )
        identity = sha256(b"lazyfs EROFS %d\n" % erofs.LAYOUT_VERSION + slots).digest()[:16]
        blocks = self._next_block + plan.data_blocks
        volume = erofs.VOLUME_WITH_XATTRS if plan.has_xattrs else erofs.VOLUME

        def superblock(checksum: int) -> bytes:
            return erofs.SUPERBLOCK.pack(
                erofs.MAGIC,
                checksum,
                erofs.FEATURES_COMPAT,
                erofs.BLOCK_BITS,
                0,
                erofs.ROOT_NID,
                len(plan.inodes),
                0,
                0,
                blocks,
                self._meta_block,
                0,
                identity,
                volume,
                erofs.FEATURES_INCOMPAT,
                len(self._devices),
                erofs.DEVICE_TABLE_OFFSET // erofs.DEVICE_SLOT.size,
            )

        checked = (superblock(0) + slots).ljust(BLOCK, b"\0")[:BLOCK]
        head = bytes(erofs.SUPERBLOCK_OFFSET) + superblock(erofs.checksum(checked)) + slots
        return head.ljust(self._meta_block * BLOCK, b"\0")

    def _write_inodes(self) -> None:
        directories = iter(self._plan.directories)
        buffer = bytearray()
        start = 0  # of the buffer, in the inode area
        for node in self._plan.inodes:
            directory = next(directories) if node.children is not None else None
            position = node.nid * SLOT
            shape = shape_of(node, directory)
            if shape.tail:
                shape.settle(position)
            buffer += bytes(position - start - len(buffer))
            buffer += self._inode(node, shape, directory)
            if len(buffer) > _BUFFER_SIZE:
                self._out.write(buffer)
                start += len(buffer)
                buffer.clear()
        self._out.write(buffer.ljust(self._plan.blocks * BLOCK - start, b"\0"))

    def _inode(self, node: Node, shape: Shape, directory: Directory | None) -> bytes:
        """The record of one inode: itself, its xattrs, and its chunk or tail."""
        layout, size, address, body = erofs.FLAT_PLAIN, 0, 0, b""
        kind, xattrs = node.kind, shape.xattrs
        if kind == REGULAR and node.size:
            layout, size = erofs.CHUNK_BASED, node.size
            address, body = self._chunk(node)
            if xattrs:
                body = bytes(-len(xattrs) % erofs.CHUNK.size) + body
        elif shape.tail or shape.full_blocks:
            size = shape.full_blocks * BLOCK + shape.tail
            if shape.inline:
                layout, body = erofs.FLAT_INLINE, _tail(node, shape, directory)
            if shape.data_blocks:
                address = self._next_block
                self._outside.append((node, shape, directory))
                self._next_block += shape.data_blocks
        elif kind in (Kind.CHARACTER, Kind.BLOCK):
            address = _encode_device(node.device)
        if not (0 <= node.uid <= _MAX_ID and 0 <= node.gid <= _MAX_ID):
            raise FormatError(f"an owner that no file can have: {node.uid}:{node.gid}")
        seconds, nanoseconds = divmod(node.mtime_ns, _NANO)
        header = erofs.INODE.pack(
            layout,
            (len(xattrs) - erofs.XATTR_HEADER.size) // 4 + 1 if xattrs else 0,
            erofs.FILE_TYPES[kind][1] | node.mode & 0o7777,
            size,
            address,
            node.nid,
            node.uid,
            node.gid,
            seconds,
            nanoseconds,
            node.nlink,
        )
        return header + xattrs + body

    def _chunk(self, node: Node) -> tuple[int, bytes]:
        """(chunk format, chunk index) of a file: one chunk of as many blocks as hold it."""
        start, size, layer = node.data_start, node.size, node.layer
        if start % BLOCK:
            raise FormatError("content off a block boundary", start)
        if not 0 <= layer < len(self._devices):
            raise FormatError(f"content in layer {layer} of {len(self._devices)}")
        if start < 0 or size < 0 or start + size > self._devices[layer].size:
            raise FormatError(f"{size} bytes of content pass the end of their layer", start)
        if size > erofs.MAX_FILE_SIZE:
            raise LimitExceeded(f"a file of {size} bytes: more than {erofs.MAX_FILE_SIZE}")
        bits = max(0, (size - 1).bit_length() - erofs.BLOCK_BITS)
        return bits | erofs.CHUNK_INDEXES, erofs.CHUNK.pack(layer + 1, start // BLOCK)


def _encode_device(device: tuple[int, int]) -> int:
    """A device number as the kernel's new_encode_dev() packs it."""
    major, minor = device
    if not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):
        raise LimitExceeded(f"a device number that Linux does not have: {major}:{minor}")
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


def _tail(node: Node, shape: Shape, directory: Directory | None) -> bytes:
    """What stands after the last full block."""
    if directory is None:
        return node.link[shape.full_blocks * BLOCK :]
    return _directory_block(directory, shape.full_blocks)


def _data_blocks(node: Node, shape: Shape, directory: Directory | None) -> bytes:
    """What of a node's data stands outside the inode area, in whole blocks."""
    if directory is None:
        blocks = [node.link[: shape.full_blocks * BLOCK]]
    else:
        blocks = [_directory_block(directory, i).ljust(BLOCK, b"\0") for i in range(shape.full_blocks)]
    if shape.tail and not shape.inline:
        blocks.append(_tail(node, shape, directory).ljust(BLOCK, b"\0"))
    return b"".join(blocks)


def _directory_block(directory: Directory, number: int) -> bytes:
    """One block of a directory: its dirents, then their names, without padding."""
    names = directory.names[directory.cuts[number] : directory.cuts[number + 1]]
    children = directory.node.children or {}
    offset = len(names) * erofs.DIRENT.size
    parts = []
    for name in names:
        child = children.get(name)
        if child is not None:
            parts.append(erofs.DIRENT.pack(child.nid, offset, erofs.FILE_TYPES[child.kind][0]))
        else:
            nid = directory.node.nid if name == b"." else directory.parent
            parts.append(erofs.DIRENT.pack(nid, offset, erofs.FILE_TYPES[Kind.DIRECTORY][0]))
        offset += len(name)
    return b"".join(parts + names)
