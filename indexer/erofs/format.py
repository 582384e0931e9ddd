"""The part of the EROFS format that metadata images use: its structures, numbers and checksum.

Names and layouts are those of the kernel's `fs/erofs/erofs_fs.h`. All integers are little-endian. An image is

    superblock         at byte 1024, 128 bytes
    device table       a slot per layer, directly after it
    inode area         inodes in depth-first order of the tree, each with its xattrs and, where they fit,
                       a symlink's target, the end of a directory, or the one chunk of a regular file
    data blocks        the full blocks of directories, and long symlink targets

in blocks of 512 bytes, so that any block of a tar has an address. A *nid* counts 32-byte slots of the inode
area; it is what st_ino shows. The root is nid 1, as FUSE wants it; slot 0 stays empty.
"""

import struct
from typing import Final, NamedTuple

from indexer.toc import Kind

LAYOUT_VERSION: Final = 1
"""Raised whenever the same members give another image: through the merge's rules or through the writer."""

BLOCK_BITS: Final = 9
BLOCK: Final = 1 << BLOCK_BITS
SLOT: Final = 32
ROOT_NID: Final = 1
MAX_BLOCKS: Final = 0xFFFF_FFFF
"""Blocks of a device, and the address that stands for a hole."""

SUPERBLOCK_OFFSET: Final = 1024
MAGIC: Final = 0xE0F5E1E2
COMPAT_CHECKSUM: Final = 1
COMPAT_MTIME: Final = 2
INCOMPAT_CHUNKED_FILE: Final = 4
INCOMPAT_DEVICE_TABLE: Final = 8
FEATURES_COMPAT: Final = COMPAT_CHECKSUM | COMPAT_MTIME
FEATURES_INCOMPAT: Final = INCOMPAT_CHUNKED_FILE | INCOMPAT_DEVICE_TABLE

VOLUME: Final = b"lazyfs"
VOLUME_WITH_XATTRS: Final = b"lazyfs xattrs"
"""The volume's name says whether any inode has xattrs: the format has no bit for it."""

# The superblock: magic, checksum, feature_compat, blkszbits, sb_extslots, root_nid, inos, epoch,
# fixed_nsec, blocks, meta_blkaddr, xattr_blkaddr, uuid, volume_name, feature_incompat, extra_devices,
# devt_slotoff; the other fields belong to features that are off.
SUPERBLOCK: Final = struct.Struct("<IIIBBHQQIIII16s16sI2xHH38x")

DEVICE_TABLE_OFFSET: Final = SUPERBLOCK_OFFSET + SUPERBLOCK.size
MAX_DEVICES: Final = 0xFFFF
MAX_TAG: Final = 64
# A slot of the device table: tag, blocks.
DEVICE_SLOT: Final = struct.Struct("<64sI60x")

# An extended inode: i_format, i_xattr_icount, i_mode, i_size, i_u, i_ino, i_uid, i_gid, i_mtime,
# i_mtime_nsec, i_nlink.
INODE: Final = struct.Struct("<HHH2xQIIIIqII16x")

# i_format: bit 0 is set in an extended inode, bits 1 to 3 say where its data is.
FLAT_PLAIN: Final = 1 | 0 << 1
FLAT_INLINE: Final = 1 | 2 << 1
CHUNK_BASED: Final = 1 | 4 << 1

CHUNK_BITS_MASK: Final = 0x1F
CHUNK_INDEXES: Final = 0x20
MAX_FILE_SIZE: Final = BLOCK << CHUNK_BITS_MASK
"""One chunk covers a file, and a chunk has at most 2**31 blocks."""

# A chunk index: device_id, startblk_lo; on a multiple of its size after the inode and its xattrs.
CHUNK: Final = struct.Struct("<2xHI")

# An entry of a directory: nid, nameoff, file_type.
DIRENT: Final = struct.Struct("<QHBx")

MAX_SYMLINK: Final = 4095

# The xattrs of an inode begin with shared_count; each one with name_len, name_index, value_size.
XATTR_HEADER: Final = struct.Struct("<4xB7x")
XATTR_ENTRY: Final = struct.Struct("<BBH")
XATTR_PREFIXES: Final = {
    1: b"user.",
    2: b"system.posix_acl_access",
    3: b"system.posix_acl_default",
    4: b"trusted.",
    6: b"security.",
}
WHOLE_XATTRS: Final = (2, 3)
"""Indexes that stand for a whole name."""
MAX_XATTR_NAME: Final = 255
MAX_XATTR_VALUE: Final = 0xFFFF
MAX_XATTRS: Final = XATTR_HEADER.size + 4 * (0xFFFF - 1)
"""Bytes that i_xattr_icount can tell of."""

FILE_TYPES: Final = {
    Kind.REGULAR: (1, 0o100000),
    Kind.DIRECTORY: (2, 0o040000),
    Kind.CHARACTER: (3, 0o020000),
    Kind.BLOCK: (4, 0o060000),
    Kind.FIFO: (5, 0o010000),
    Kind.SYMLINK: (7, 0o120000),
}
"""A dirent's file_type and the S_IFMT bits of a mode."""


class Device(NamedTuple):
    """One layer as a block device.

    Attributes:
        tag: at most 64 bytes that name the layer, such as the hexadecimal part of a digest; ends in no NUL.
        size: bytes of the layer's address space; an image keeps it rounded up to blocks.
    """

    tag: bytes
    size: int


def xattrs_size(count: int) -> int:
    """Bytes of the xattrs of an inode with this i_xattr_icount."""
    return XATTR_HEADER.size + 4 * (count - 1) if count else 0


def meta_block(devices: int) -> int:
    """The block where the inode area begins, after the slots of `devices`."""
    return -(-(DEVICE_TABLE_OFFSET + devices * DEVICE_SLOT.size) // BLOCK)


def checksum(block: bytes) -> int:
    """The superblock's checksum over its block, in which the checksum itself must be 0.

    CRC-32C with an initial value of all ones and no final inversion.
    """
    remainders = [_eight_bits(byte) for byte in range(256)]
    crc = 0xFFFF_FFFF
    for byte in block:
        crc = crc >> 8 ^ remainders[(crc ^ byte) & 0xFF]
    return crc


def _eight_bits(crc: int) -> int:
    for _ in range(8):
        crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc
