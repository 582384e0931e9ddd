"""Metadata images damaged in every way: reading them gives FormatError and nothing else."""

import struct
from contextlib import suppress
from stat import S_IFMT

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.erofs import format as erofs
from indexer.erofs.read import MetadataImage
from indexer.errors import FormatError
from indexer.toc import Kind, Member
from tests.support.erofs_images import LINKS, compiled, file


def rich_image() -> bytes:
    return compiled(
        *(file(b"dir/%03d" % number, 9, 512) for number in range(60)),
        *LINKS[:6],
        Member(b"long", Kind.SYMLINK, link=b"t" * 1000),
        Member(b"device", Kind.BLOCK, device=(8, 1)),
        file(b"x", 700, 1024, xattrs=((b"user.a", b"1"), (b"security.b", b"2" * 300))),
        Member(b"h", Kind.HARDLINK, link=b"x"),
    )


RICH = rich_image()


def resealed(content: bytes) -> bytes:
    """With a superblock checksum that fits."""
    block = content[1024:1028] + bytes(4) + content[1032:1536]
    return content[:1028] + struct.pack("<I", erofs.checksum(block)) + content[1032:]


def exercise(content: bytes) -> None:
    """Read everything every way; what comes out is not looked at."""
    image = MetadataImage(content)
    for nid in range(1, image.inode_count * 3):
        for read in (image.inode, image.readlink, image.xattrs, image.extent):
            with_only_format_errors(read, nid)
        with_only_format_errors(lambda nid=nid: list(image.entries(nid)))
        with_only_format_errors(image.lookup, nid, b"030")
    with_only_format_errors(lambda: [path for path, _ in image.walk()])
    for path in (b"dir/030", b"d/out", b"loop", b"absolute/f", b"long"):
        with_only_format_errors(image.resolve, path)


def with_only_format_errors(call, *arguments) -> None:
    with suppress(FormatError):
        call(*arguments)


@settings(max_examples=150)
@given(
    st.lists(
        st.tuples(
            st.integers(1024, len(RICH) - 8),
            st.one_of(st.binary(min_size=1, max_size=8), st.just(b"\xff" * 8)),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_a_damaged_image_gives_only_format_errors(patches):
    content = bytearray(RICH)
    for offset, patch in patches:
        content[offset : offset + len(patch)] = patch
    with_only_format_errors(exercise, resealed(bytes(content)))


@settings(max_examples=60)
@given(st.integers(0, len(RICH) - 1))
def test_a_cut_image_is_refused(size):
    with pytest.raises(FormatError):
        MetadataImage(RICH[:size])


@given(st.integers(0, 511), st.integers(1, 255))
def test_a_changed_superblock_is_refused(offset, flip):
    content = bytearray(RICH)
    content[1024 + offset] ^= flip
    with pytest.raises(FormatError):
        MetadataImage(content)


@settings(max_examples=50)
@given(st.binary(max_size=4096))
def test_garbage_is_no_image(content):
    with pytest.raises(FormatError):
        MetadataImage(content)


@pytest.mark.parametrize("nid", [0, -1, -(2**70), 2**31, 2**64, 2**70])
def test_inodes_outside_the_image_are_refused(nid):
    image = MetadataImage(RICH)
    for read in (image.inode, image.readlink, image.xattrs, image.extent):
        with pytest.raises(FormatError):
            read(nid)


def test_a_cycle_of_directories_ends_the_walk():
    content = bytearray(compiled(file(b"d/e/x"), file(b"d/f")))
    image = MetadataImage(bytes(content))
    root, inner = image.resolve(b"d"), image.resolve(b"d/e")
    dirent = content.index(struct.pack("<QHB", inner, 4 * 12 + len("..."), 2))
    content[dirent : dirent + 8] = struct.pack("<Q", root)
    with_only_format_errors(exercise, bytes(content))
    with pytest.raises(FormatError, match="cycle"):
        list(MetadataImage(content).walk())


def test_using_an_inode_as_another_kind_is_refused():
    image = MetadataImage(RICH)
    nid = image.resolve(b"x")
    assert S_IFMT(image.inode(nid).mode) == 0o100000
    for use in (image.readlink, lambda nid: image.lookup(nid, b"a"), lambda nid: list(image.entries(nid))):
        with pytest.raises(FormatError):
            use(nid)
    assert image.extent(image.resolve(b"dir")) is None
