"""The messages, laid out as a C compiler does."""

import ctypes
import os
import stat
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.erofs.read import Inode
from lazyfs.mount import wire, wire_init
from lazyfs.mount.wire import Header, NotifyCode, Opcode, OpenFlag, WireError
from lazyfs.mount.wire_init import InitFlag
from tests.support import fuse_protocol as c

U16, U32, U64 = (st.integers(0, 2**bits - 1) for bits in (16, 32, 64))
KINDS = [stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK]
NAMES = st.binary(min_size=1, max_size=255)
INODES = st.builds(
    Inode,
    nid=U64,
    mode=st.builds(int.__or__, st.sampled_from(KINDS), st.integers(0, 0o7777)),
    nlink=U32,
    uid=U32,
    gid=U32,
    size=st.integers(0, 2**63 - 1),
    mtime_ns=st.integers(-(2**63), 2**63 - 1),
    rdev=st.builds(os.makedev, st.integers(0, 4095), st.integers(0, 2**20 - 1)),
    has_xattrs=st.booleans(),
)


def kernel_device(encoded: int) -> tuple[int, int]:
    """new_decode_dev() of include/linux/kdev_t.h."""
    return (encoded & 0xFFF00) >> 8, (encoded & 0xFF) | ((encoded >> 12) & 0xFFF00)


def check_attributes(found: c.Attr, inode: Inode) -> None:
    assert (found.ino, found.size, found.mode) == (inode.nid, inode.size, inode.mode)
    assert (found.nlink, found.uid, found.gid) == (inode.nlink, inode.uid, inode.gid)
    assert found.mtime_ns == inode.mtime_ns
    assert kernel_device(found.rdev) == (os.major(inode.rdev), os.minor(inode.rdev))
    assert (found.blocks - 1) * 512 < inode.size <= found.blocks * 512
    assert (found.blksize, found.flags) == (4096, 0)


@given(INODES)
def test_attributes_come_whole(inode):
    check_attributes(c.AttrOut.from_buffer_copy(wire.encode_attributes(inode)).attr, inode)
    entry = c.EntryOut.from_buffer_copy(wire.encode_entry(inode))
    check_attributes(entry.attr, inode)
    assert (entry.nodeid, entry.generation) == (inode.nid, 0)
    assert entry.entry_valid == entry.attr_valid == wire.FOREVER_S
    assert len(wire.encode_entry(inode)) == ctypes.sizeof(c.EntryOut) == len(wire.NO_ENTRY)
    assert len(wire.encode_attributes(inode)) == ctypes.sizeof(c.AttrOut)


@given(st.lists(st.tuples(NAMES, INODES, U64), max_size=5))
def test_listings_come_whole(entries):
    plain = list(c.parse_listing(b"".join(wire.encode_dirent(*entry) for entry in entries), plus=False))
    plus = list(c.parse_listing(b"".join(wire.encode_direntplus(*entry) for entry in entries), plus=True))
    for (name, inode, after), short, full in zip(entries, plain, plus, strict=True):
        for listed in (short, full):
            assert listed.name == name
            assert (listed.dirent.ino, listed.dirent.off) == (inode.nid, after)
            assert listed.dirent.type << 12 == stat.S_IFMT(inode.mode)
        check_attributes(full.entry.attr, inode)
        assert full.entry.nodeid == inode.nid


def test_that_there_is_no_such_name_may_be_remembered():
    entry = c.EntryOut.from_buffer_copy(wire.NO_ENTRY)
    assert (entry.nodeid, entry.entry_valid) == (0, wire.FOREVER_S)


@given(opcode=U32, unique=U64, nodeid=U64, pid=U32, body=st.binary(max_size=99))
def test_a_header_is_read(opcode, unique, nodeid, pid, body):
    message = memoryview(c.message(opcode, unique, nodeid, body, pid=pid))
    header = wire.decode_header(message)
    assert header == Header(opcode, unique, nodeid, pid)
    assert message[wire.IN_HEADER.size :] == body
    assert str(nodeid) in wire.describe(header, message[wire.IN_HEADER.size :])
    for cut in (0, len(message) - 1):
        with pytest.raises(WireError):
            wire.decode_header(message[:cut])


@given(offset=U64, size=U32, handle=U64)
def test_a_read_is_read(offset, size, handle):
    assert wire.decode_read(memoryview(c.read_body(offset, size, handle))) == (offset, size, False, handle)
    direct = bytes(c.ReadIn(0, offset, size, flags=os.O_DIRECT | os.O_NOATIME))
    assert wire.decode_read(memoryview(direct)) == (offset, size, True, 0)
    assert wire.decode_release(memoryview(bytes(c.ReleaseIn(handle, 1, 2, 3)))) == handle


@given(name=st.binary(max_size=300).filter(lambda name: b"\0" not in name), size=U32, unique=U64, flags=U32)
def test_other_bodies_are_read(name, size, unique, flags):
    assert wire.decode_name(memoryview(name + b"\0")) == name
    wanted = wire.decode_getxattr(memoryview(bytes(c.GetxattrIn(size)) + name + b"\0"))
    assert wanted == (size, name)
    assert wire.decode_getxattr(memoryview(bytes(c.GetxattrIn(size)))) == (size, b"")
    assert wire.decode_interrupt(memoryview(bytes(c.InterruptIn(unique)))) == unique


@given(minor=U32, flags=st.integers(0, 2**64 - 1))
def test_the_kernels_offer_is_read(minor, flags):
    offer = wire_init.decode_init(memoryview(c.init_body(minor=minor, flags=flags)))
    assert (offer.major, offer.minor, offer.max_readahead) == (7, minor, 1 << 17)
    assert offer.flags == flags | InitFlag.INIT_EXT


def test_the_offer_of_an_older_kernel_is_shorter():
    offer = wire_init.decode_init(memoryview(bytes(c.InitIn(7, 31, 4096, 1))[:16]))
    assert offer == wire_init.InitIn(7, 31, 4096, InitFlag.ASYNC_READ)


@given(minor=U32, readahead=U32, flags=U64, background=U16, pages=U16)
def test_what_we_agree_to_is_said(minor, readahead, flags, background, pages):
    agreed = wire_init.InitOut(minor, readahead, InitFlag(flags), background, pages)
    out = c.InitOut.from_buffer_copy(wire_init.encode_init(agreed))
    assert len(wire_init.encode_init(agreed)) == ctypes.sizeof(c.InitOut) == 64
    assert (out.major, out.minor, out.max_readahead) == (7, minor, readahead)
    assert out.flags | out.flags2 << 32 == flags
    assert (out.max_background, out.max_pages, out.time_gran) == (background, pages, 1)
    assert out.congestion_threshold == background * 3 // 4
    assert out.max_write >= 4096


@given(blocks=U64, files=U64, block=U32, name=U32)
def test_statfs_is_said(blocks, files, block, name):
    data = wire.encode_statfs(block_size=block, blocks=blocks, files=files, longest_name=name)
    found = c.Kstatfs.from_buffer_copy(data)
    assert len(data) == ctypes.sizeof(c.Kstatfs)
    assert (found.blocks, found.files, found.bsize, found.frsize) == (blocks, files, block, block)
    assert (found.namelen, found.bfree, found.bavail, found.ffree) == (name, 0, 0, 0)


@given(value=st.binary(max_size=99), room=st.integers(0, 120))
def test_an_xattr_comes_in_its_size_or_not_at_all(value, room):
    answer = wire.encode_xattr(value, room)
    if room == 0:
        assert c.GetxattrOut.from_buffer_copy(answer).size == len(value)
    else:
        assert answer == (value if len(value) <= room else None)


@given(unique=U64, number=st.integers(1, 133), size=st.integers(0, 2**31))
def test_answers_begin_with_their_header(unique, number, size):
    head = c.OutHeader.from_buffer_copy(wire.encode_reply(unique, size))
    assert (head.len, head.error, head.unique) == (size + 16, 0, unique)
    head = c.OutHeader.from_buffer_copy(wire.encode_error(unique, number))
    assert (head.len, head.error, head.unique) == (16, -number, unique)


def test_the_rest_is_said():
    note = wire.encode_notification(NotifyCode.RESEND)
    head = c.OutHeader.from_buffer_copy(note)
    assert (head.len, head.error, head.unique, len(note)) == (16, 7, 0, 16)
    opened = c.OpenOut.from_buffer_copy(wire.encode_open(OpenFlag.KEEP_CACHE))
    assert (opened.fh, opened.open_flags) == (0, 2)
    assert len(wire_init.encode_version()) == 8


@given(st.binary(max_size=64))
def test_bodies_of_any_bytes_are_read_or_refused(body):
    decoders = (
        *(wire.decode_read, wire.decode_name, wire.decode_getxattr),
        *(wire.decode_interrupt, wire_init.decode_init),
    )
    for decode in decoders:
        with suppress(WireError):
            decode(memoryview(body))
    for opcode in (*Opcode, 999):
        assert wire.describe(Header(opcode, 1, 2, 3), memoryview(body)).startswith(
            opcode.name.lower() if isinstance(opcode, Opcode) else "request 999"
        )
