"""The fuse driver's answers, asked without a mount."""

import errno
import os
import stat

import pyfuse3
import pytest
import trio
from pyfuse3 import FUSEError

from indexer.toc import Kind
from lazyfs.mount.contents import Contents
from lazyfs.mount.handlers import FOREVER_S
from lazyfs.mount.operations import TreeOperations
from tests.support.mount_server import (
    Behaviour,
    directory,
    file,
    hardlink,
    open_image,
    open_layers,
    special,
    symlink,
    write_image,
)

ROOT = pyfuse3.ROOT_INODE
CTX = pyfuse3.RequestContext()
CONTENT = bytes(range(256)) * 40
BEFORE_1970 = -1_500_000_001
OWNED = {"mode": 0o4751, "uid": 1000, "gid": 100_000, "mtime_ns": BEFORE_1970}
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
ACL = bytes.fromhex("0200000001000600ffffffff04000400ffffffff20000400ffffffff")

TREE = [
    [
        file(b"local", CONTENT, **OWNED),
        hardlink(b"dir/again", b"local", **OWNED),
        directory(b"dir", mode=0o1777, mtime_ns=1_600_000_000_123_456_789),
        symlink(b"dir/link", b"../local"),
        file(b"empty"),
        special(b"null", Kind.CHARACTER, (1, 3), mode=0o666),
        special(b"disk", Kind.BLOCK, (259, 1234), mode=0o660),
        special(b"pipe", Kind.FIFO),
        file(b"ping", b"\x7fELF", xattrs=((b"security.capability", CAPABILITY), (b"user.a", b""))),
        file(b"acl", xattrs=((b"system.posix_acl_access", ACL),)),
        file(b"\xff\xfe not utf-8 \n", b"x"),
    ],
    [file(b"upper", CONTENT[::-1])],
]


@pytest.fixture(scope="module")
def image_directory(tmp_path_factory):
    return write_image(tmp_path_factory.mktemp("tree") / "image", TREE)


def operations(image_directory, *behaviours: Behaviour, timeout_s: float = 10.0) -> TreeOperations:
    layers = open_layers(image_directory, behaviours or ["local"])
    return TreeOperations(open_image(image_directory), Contents(layers, timeout_s))


@pytest.fixture
def tree(image_directory):
    return operations(image_directory)


async def find(tree: TreeOperations, *names: bytes) -> pyfuse3.EntryAttributes:
    entry = await tree.getattr(ROOT, CTX)
    for name in names:
        entry = await tree.lookup(entry.st_ino, name, CTX)
    return entry


async def errno_of(call, *arguments) -> str:
    with pytest.raises(FUSEError) as caught:
        await call(*arguments)
    return errno.errorcode[caught.value.errno]


async def test_an_entry_has_what_the_layer_says_for_good(tree):
    entry = await find(tree, b"local")
    assert stat.filemode(entry.st_mode) == "-rwsr-x--x"
    assert (entry.st_uid, entry.st_gid, entry.st_nlink) == (1000, 100_000, 2)
    assert (entry.st_size, entry.st_blocks, entry.st_blksize) == (10_240, 20, 4096)
    assert entry.st_mtime_ns == entry.st_atime_ns == entry.st_ctime_ns == BEFORE_1970
    assert entry.entry_timeout == entry.attr_timeout == FOREVER_S
    assert (await tree.getattr(entry.st_ino, CTX)).__getstate__() == entry.__getstate__()


async def test_hard_links_are_one_inode(tree):
    assert (await find(tree, b"dir", b"again")).st_ino == (await find(tree, b"local")).st_ino


async def test_a_missing_name_is_an_answer_the_kernel_may_keep(tree):
    entry = await find(tree, b"missing")
    assert (entry.st_ino, entry.entry_timeout) == (0, FOREVER_S)


async def test_dots_are_looked_up_also_below_a_file(tree):
    inside = await find(tree, b"dir")
    assert (await find(tree, b"dir", b".")).st_ino == inside.st_ino
    assert (await find(tree, b"dir", b"..")).st_ino == ROOT
    assert (await find(tree, b"..")).st_ino == ROOT
    plain = await find(tree, b"local")
    assert (await find(tree, b"local", b".")).st_ino == plain.st_ino


async def test_devices_have_their_numbers(tree):
    null, disk, pipe = [await find(tree, name) for name in (b"null", b"disk", b"pipe")]
    assert stat.S_ISCHR(null.st_mode)
    assert null.st_rdev == os.makedev(1, 3)
    assert stat.S_ISBLK(disk.st_mode)
    assert disk.st_rdev == os.makedev(259, 1234)
    assert stat.S_ISFIFO(pipe.st_mode)
    assert pipe.st_rdev == 0


async def test_a_symlink_is_read(tree):
    assert await tree.readlink((await find(tree, b"dir", b"link")).st_ino, CTX) == b"../local"


@pytest.mark.parametrize(
    ("offset", "size"),
    [(0, 4096), (0, 1 << 20), (1, 1), (511, 513), (10_239, 9), (10_240, 4096), (1 << 60, 9)],
)
@pytest.mark.parametrize("behaviour", ["local", "remote"])
async def test_a_read_gives_the_files_bytes_and_never_its_neighbours(
    image_directory, behaviour, offset, size
):
    tree = operations(image_directory, behaviour)
    for name, content in ((b"local", CONTENT), (b"upper", CONTENT[::-1]), (b"empty", b"")):
        opened = await tree.open((await find(tree, name)).st_ino, os.O_RDONLY, CTX)
        assert bytes(await tree.read(opened.fh, offset, size)) == content[offset : offset + size]
        assert opened.keep_cache


async def test_a_local_read_is_answered_without_yielding(tree):
    inode = (await find(tree, b"local")).st_ino
    with trio.testing.assert_no_checkpoints():
        await tree.read(inode, 0, 4096)


async def test_xattrs_come_byte_for_byte(tree):
    ping, acl, plain = [(await find(tree, name)).st_ino for name in (b"ping", b"acl", b"local")]
    assert await tree.getxattr(ping, b"security.capability", CTX) == CAPABILITY
    assert await tree.getxattr(ping, b"user.a", CTX) == b""
    assert sorted(await tree.listxattr(ping, CTX)) == [b"security.capability", b"user.a"]
    assert await tree.getxattr(acl, b"system.posix_acl_access", CTX) == ACL
    assert await tree.listxattr(plain, CTX) == []
    assert await errno_of(tree.getxattr, plain, b"user.a", CTX) == "ENODATA"
    assert tree.enable_acl


async def test_an_image_without_xattrs_is_never_asked_again(tmp_path):
    tree = operations(write_image(tmp_path / "image", [[file(b"a")]]))
    assert await errno_of(tree.getxattr, ROOT, b"security.capability", CTX) == "ENOSYS"
    assert await errno_of(tree.listxattr, ROOT, CTX) == "ENOSYS"
    assert not tree.enable_acl


async def test_statfs_tells_the_size_of_all_layers(tree):
    data = await tree.statfs(CTX)
    layers = 10_240 + 512 + 512 + 10_240  # local, ping, the odd name; upper
    assert 0 < data.f_blocks * data.f_frsize - layers < 16_384  # the rest is the image itself
    assert (data.f_files, data.f_bfree, data.f_bavail, data.f_ffree, data.f_namemax) == (12, 0, 0, 0, 255)


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_APPEND])
async def test_nothing_is_opened_for_writing(tree, flags):
    assert await errno_of(tree.open, ROOT, flags, CTX) == "EROFS"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("setattr", 5),
        ("mknod", 5),
        ("mkdir", 4),
        ("unlink", 3),
        ("rmdir", 3),
        ("symlink", 4),
        ("rename", 6),
        ("link", 4),
        ("write", 3),
        ("setxattr", 4),
        ("removexattr", 3),
        ("create", 5),
    ],
)
async def test_every_change_is_refused(tree, name, arguments):
    assert await errno_of(getattr(tree, name), *[None] * arguments) == "EROFS"


@pytest.mark.parametrize("name", ["flush", "fsync", "fsyncdir", "poll", "access"])
async def test_what_has_nothing_to_tell_us_is_asked_once(tree, name):
    assert (
        await errno_of(getattr(tree, name), *[0] * {"flush": 1, "poll": 4, "access": 3}.get(name, 2))
        == "ENOSYS"
    )


async def test_closing_and_forgetting_are_nothing(tree):
    await tree.forget([(ROOT, 1)])
    await tree.release(7)
    await tree.releasedir(await tree.opendir(ROOT, CTX))


@pytest.mark.parametrize(
    ("behaviour", "expected", "logged"),
    [
        pytest.param(how, name, text, marks=pytest.mark.expect_log(text))
        for how, name, text in [
            ("unreachable", "EIO", r"cannot answer read\(\d+, 0, 10\): no route"),
            ("refused", "EACCES", "other credentials"),
            ("missing", "ENOENT", "no such blob"),
            ("corrupt", "EIO", "expected sha256:00, got sha256:11"),
            ("buggy", "EIO", r"ERROR lazyfs.mount.operations: a bug, while answering read\(\d+, 0, 10\)"),
            ("short", "EIO", "a bug"),
            ("stalled", "ETIMEDOUT", r"no answer within 10 s \[ETIMEDOUT\]"),
        ]
    ],
)
async def test_a_failing_layer_is_an_errno_and_a_line_of_log(
    image_directory, autojump_clock, behaviour, expected, logged
):
    tree = operations(image_directory, behaviour)
    assert await errno_of(tree.read, (await find(tree, b"local")).st_ino, 0, 10) == expected


@pytest.mark.expect_log("cannot answer .*outside the image")
@pytest.mark.parametrize("inode", [0, 10**6, 2**63])
async def test_an_inode_that_is_none_is_an_error_like_any_other(tree, inode):
    for call in (
        tree.getattr(inode, CTX),
        tree.lookup(inode, b"a", CTX),
        tree.readlink(inode, CTX),
        tree.read(inode, 0, 1),
        tree.getxattr(inode, b"user.a", CTX),
        tree.listxattr(inode, CTX),
        tree.readdir(inode, 0, pyfuse3.ReaddirToken()),
    ):
        with pytest.raises(FUSEError) as caught:
            await call
        assert caught.value.errno == errno.EIO


async def test_a_read_outlasts_its_task_until_the_mount_ends(image_directory, autojump_clock, nursery):
    tree = operations(image_directory, "stalled", timeout_s=1000)
    inode = (await find(tree, b"local")).st_ino
    nursery.start_soon(tree.read, inode, 0, 1)
    await trio.testing.wait_all_tasks_blocked()
    nursery.cancel_scope.cancel()
    with trio.CancelScope(shield=True):
        await trio.sleep(900)
        assert "1 reads under way" in repr(tree.contents)
        tree.contents.let_go()
        await trio.testing.wait_all_tasks_blocked()
        assert "0 reads under way" in repr(tree.contents)
