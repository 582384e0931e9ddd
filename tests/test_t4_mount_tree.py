"""The fuse driver's answers, asked without a mount."""

import errno
import os
import stat

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from indexer.errors import IndexerError
from indexer.toc import Kind
from lazyfs.mount.contents import Contents
from lazyfs.mount.errors import Refused
from lazyfs.mount.tree_answers import TreeAnswers
from lazyfs.mount.wire import ROOT_ID, Opcode, WireError
from lazyfs.mount.wire_init import InitFlag
from tests.support import fuse_protocol as c
from tests.support.fuse_protocol import Client
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

CONTENT = bytes(range(256)) * 40
BEFORE_1970 = -1_500_000_001
OWNED = {"mode": 0o4751, "uid": 1000, "gid": 100_000, "mtime_ns": BEFORE_1970}
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
ACL = bytes.fromhex("0200000001000600ffffffff04000400ffffffff20000400ffffffff")
YEAR_S = 365 * 86400

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
    [file(b"upper", CONTENT[::-1]), *[file(b"many/%03d" % n + b"x" * (n % 9)) for n in range(300)]],
]


@pytest.fixture(scope="module")
def image_directory(tmp_path_factory):
    return write_image(tmp_path_factory.mktemp("tree") / "image", TREE)


def client(image_directory, *behaviours: Behaviour, timeout_s: float = 10.0, **offer: int) -> Client:
    layers = open_layers(image_directory, behaviours or ["local"])
    return Client(TreeAnswers(open_image(image_directory), Contents(layers, timeout_s)), **offer)


@pytest.fixture
def tree(image_directory):
    return client(image_directory)


def find(tree: Client, *names: bytes) -> int:
    """The inode at a path; that its entry and its attributes tell the same."""
    nodeid = ROOT_ID
    for name in names:
        entry = tree.look_up(nodeid, name)
        nodeid = entry.nodeid
        assert bytes(entry.attr) == bytes(tree.attributes(nodeid))
    return nodeid


def errno_of(call, *arguments) -> str:
    with pytest.raises(Refused) as caught:
        call(*arguments)
    return errno.errorcode[caught.value.errno]


def test_an_entry_has_what_the_layer_says_for_good(tree):
    entry = tree.look_up(ROOT_ID, b"local")
    attr = entry.attr
    assert stat.filemode(attr.mode) == "-rwsr-x--x"
    assert (attr.uid, attr.gid, attr.nlink) == (1000, 100_000, 2)
    assert (attr.size, attr.blocks, attr.blksize) == (10_240, 20, 4096)
    assert attr.mtime_ns == BEFORE_1970
    assert entry.nodeid == attr.ino
    assert entry.entry_valid == entry.attr_valid == YEAR_S


def test_hard_links_are_one_inode(tree):
    assert find(tree, b"dir", b"again") == find(tree, b"local")


def test_a_missing_name_is_an_answer_the_kernel_may_keep(tree):
    entry = tree.look_up(ROOT_ID, b"missing")
    assert (entry.nodeid, entry.entry_valid) == (0, YEAR_S)


def test_a_name_is_at_most_255_bytes(tree):
    assert tree.look_up(ROOT_ID, b"n" * 255).nodeid == 0
    assert errno_of(tree.look_up, ROOT_ID, b"n" * 256) == "ENAMETOOLONG"


def test_dots_are_looked_up_also_below_a_file(tree):
    assert find(tree, b"dir", b".") == find(tree, b"dir")
    assert find(tree, b"dir", b"..") == find(tree, b"..") == ROOT_ID
    assert find(tree, b"local", b".") == find(tree, b"local")


def test_devices_have_their_numbers(tree):
    null, disk, pipe = [tree.attributes(find(tree, name)) for name in (b"null", b"disk", b"pipe")]
    assert stat.S_ISCHR(null.mode)
    assert null.rdev == os.makedev(1, 3)
    assert stat.S_ISBLK(disk.mode)
    assert disk.rdev == os.makedev(259, 1234)
    assert stat.S_ISFIFO(pipe.mode)
    assert pipe.rdev == 0


def test_a_symlink_is_read(tree):
    assert tree.ask_now(Opcode.READLINK, find(tree, b"dir", b"link")) == b"../local"


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("room", [200, 4096, 1 << 17])
def test_a_directory_is_listed_whole_in_any_steps(tree, plus, room):
    many = find(tree, b"many")
    listed, offset = [], 0
    while step := tree.list(many, offset, room, plus=plus):
        listed += step
        offset = step[-1].dirent.off
    assert [entry.name for entry in listed] == sorted(
        [b".", b"..", *(b"%03d" % n + b"x" * (n % 9) for n in range(300))]
    )
    for listing in listed[2:]:
        entry = tree.look_up(many, listing.name)
        assert listing.dirent.ino == entry.nodeid
        assert listing.dirent.type << 12 == stat.S_IFMT(entry.attr.mode)
        assert listing.entry is None or bytes(listing.entry) == bytes(entry)
    assert [listing.dirent.ino for listing in listed[:2]] == [many, ROOT_ID]


@pytest.mark.parametrize(
    ("offset", "size"),
    [(0, 4096), (0, 1 << 20), (1, 1), (511, 513), (10_239, 9), (10_240, 4096), (1 << 60, 9)],
)
@pytest.mark.parametrize("behaviour", ["local", "remote"])
async def test_a_read_gives_the_files_bytes_and_never_its_neighbours(
    image_directory, behaviour, offset, size
):
    tree = client(image_directory, behaviour)
    for name, content in ((b"local", CONTENT), (b"upper", CONTENT[::-1]), (b"empty", b"")):
        assert await tree.read(find(tree, name), offset, size) == content[offset : offset + size]


def test_a_local_read_is_answered_at_once(tree):
    answer = tree.ask_now(Opcode.READ, find(tree, b"local"), c.read_body(0, 4096))
    assert answer == CONTENT[:4096]


def test_xattrs_come_byte_for_byte(tree):
    ping, acl, plain = [find(tree, name) for name in (b"ping", b"acl", b"local")]
    assert tree.getxattr(ping, b"security.capability") == CAPABILITY
    assert tree.getxattr(ping, b"user.a") == b""
    assert sorted(tree.listxattr(ping).split(b"\0")) == [b"", b"security.capability", b"user.a"]
    assert tree.getxattr(acl, b"system.posix_acl_access") == ACL
    assert tree.listxattr(plain) == b""
    assert errno_of(tree.getxattr, plain, b"user.a") == "ENODATA"
    assert tree.settled.flags & InitFlag.POSIX_ACL == 0  # this kernel did not offer it


def test_an_xattr_that_does_not_fit_is_a_size_or_an_error(tree):
    ping = find(tree, b"ping")
    assert c.GetxattrOut.from_buffer_copy(tree.getxattr(ping, b"security.capability", 0)).size == 20
    assert c.GetxattrOut.from_buffer_copy(tree.listxattr(ping, 0)).size == 27
    assert tree.getxattr(ping, b"security.capability", 20) == CAPABILITY
    assert errno_of(tree.getxattr, ping, b"security.capability", 19) == "ERANGE"
    assert errno_of(tree.listxattr, ping, 26) == "ERANGE"


def test_an_image_without_xattrs_is_never_asked_again(tmp_path, image_directory):
    tree = client(write_image(tmp_path / "image", [[file(b"a")]]), flags=InitFlag.POSIX_ACL)
    assert errno_of(tree.getxattr, ROOT_ID, b"security.capability") == "ENOSYS"
    assert errno_of(tree.listxattr, ROOT_ID) == "ENOSYS"
    assert not tree.settled.flags & InitFlag.POSIX_ACL
    assert client(image_directory, flags=InitFlag.POSIX_ACL).settled.flags & InitFlag.POSIX_ACL


def test_statfs_tells_the_size_of_all_layers(tree):
    data = c.Kstatfs.from_buffer_copy(tree.ask_now(Opcode.STATFS, ROOT_ID))
    layers = 10_240 + 512 + 512 + 10_240  # local, ping, the odd name; upper
    assert layers < data.blocks * data.frsize < layers + 65_536  # the rest is the image itself
    assert (data.files, data.bfree, data.bavail, data.ffree, data.namelen) == (313, 0, 0, 0, 255)


@pytest.mark.parametrize("opcode", [Opcode.OPEN, Opcode.OPENDIR])
def test_a_kernel_that_opens_by_itself_is_told_to(image_directory, opcode):
    body = bytes(c.OpenIn(os.O_RDONLY))
    assert errno_of(client(image_directory).ask_now, opcode, ROOT_ID, body) == "ENOSYS"
    older = client(image_directory, flags=0)
    opened = c.OpenOut.from_buffer_copy(older.ask_now(opcode, ROOT_ID, body))
    assert opened.open_flags == (2 if opcode == Opcode.OPEN else 2 | 8)  # KEEP_CACHE, CACHE_DIR


@pytest.mark.parametrize(
    "opcode",
    [
        *(
            Opcode.SETATTR,
            Opcode.MKNOD,
            Opcode.MKDIR,
            Opcode.UNLINK,
            Opcode.RMDIR,
            Opcode.SYMLINK,
            Opcode.LINK,
        ),
        *(Opcode.RENAME, Opcode.RENAME2, Opcode.WRITE, Opcode.SETXATTR, Opcode.REMOVEXATTR, Opcode.CREATE),
        *(Opcode.FALLOCATE, Opcode.TMPFILE),
    ],
)
def test_every_change_is_refused(tree, opcode):
    assert errno_of(tree.ask_now, opcode, ROOT_ID) == "EROFS"


@pytest.mark.parametrize("opcode", [20, 25, 30, 34, 39, 40, 46, 50, 52, 99_999])
def test_what_has_nothing_to_tell_us_is_asked_once(tree, opcode):
    """FSYNC, FLUSH, FSYNCDIR, ACCESS, IOCTL, POLL, LSEEK, SYNCFS, STATX, and whatever may come."""
    assert errno_of(tree.ask_now, opcode, ROOT_ID) == "ENOSYS"


def test_closing_and_forgetting_are_nothing(tree):
    for opcode in (Opcode.RELEASE, Opcode.RELEASEDIR, Opcode.DESTROY):
        assert tree.ask_now(opcode, ROOT_ID) == b""
    for opcode in (Opcode.FORGET, Opcode.BATCH_FORGET):
        assert tree.ask_now(opcode, ROOT_ID) is None


def test_what_is_agreed_on_was_offered(image_directory):
    for flags in (0, (1 << 30) - 1, c.NO_OPEN_SUPPORT | InitFlag.ASYNC_READ):
        settled = client(image_directory, flags=flags).settled
        assert settled.flags & ~(flags | InitFlag.INIT_EXT) == 0
        assert settled.flags2 == 0
        assert (settled.minor, settled.max_readahead) == (40, 1 << 17)
        assert settled.max_background >= 64
    assert client(image_directory, minor=31).settled.minor == 31


def test_only_a_kernel_that_offers_idmapped_mounts_is_asked_for_them(image_directory):
    idmap = InitFlag.ALLOW_IDMAP
    settled = client(image_directory, flags=idmap | 1 << 41).settled
    assert settled.flags & InitFlag.INIT_EXT
    assert settled.flags2 << 32 == idmap
    assert client(image_directory, flags=1 << 41).settled.flags2 == 0


def test_a_kernel_without_more_flags_is_not_told_any(image_directory):
    body = bytes(c.InitIn(7, 35, 4096, c.NO_OPEN_SUPPORT | InitFlag.ASYNC_READ))[:16]
    settled = c.InitOut.from_buffer_copy(client(image_directory).ask_now(Opcode.INIT, 0, body))
    assert (settled.flags, settled.flags2) == (InitFlag.ASYNC_READ, 0)


def test_other_major_versions_are_settled_as_the_protocol_has_it(tree):
    later = tree.ask_now(Opcode.INIT, 0, c.init_body(major=8))
    assert later == bytes(c.InitOut(7, 40))[:8]
    assert errno_of(tree.ask_now, Opcode.INIT, 0, c.init_body(minor=22)) == "EPROTO"
    assert errno_of(tree.ask_now, Opcode.INIT, 0, c.init_body(major=6)) == "EPROTO"


@pytest.mark.parametrize("inode", [0, 10**6, 2**63])
async def test_an_inode_that_is_none_is_an_error_like_any_other(tree, inode):
    asked = (
        *((Opcode.GETATTR, bytes(16)), (Opcode.LOOKUP, b"a\0"), (Opcode.READLINK, b"")),
        *((Opcode.READ, c.read_body(0, 1)), (Opcode.READDIRPLUS, c.read_body(2, 4096))),
        *((Opcode.GETXATTR, bytes(8) + b"user.a\0"), (Opcode.LISTXATTR, bytes(8))),
    )
    for opcode, body in asked:
        with pytest.raises(IndexerError):
            await tree.ask(opcode, inode, body)


@given(opcode=st.sampled_from([*Opcode, 99]), nodeid=st.integers(0, 400), body=st.binary(max_size=60))
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_asked_is_answered_or_refused(tree, opcode, nodeid, body):
    try:
        answer = tree.ask_now(opcode, nodeid, body)
    except (Refused, WireError, IndexerError):
        return
    assert answer is None or isinstance(answer, (bytes, memoryview))


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [("unreachable", "Unreachable"), ("corrupt", "DigestMismatch"), ("short", "RuntimeError")],
)
async def test_a_failing_layer_is_its_error(image_directory, behaviour, expected):
    tree = client(image_directory, behaviour)
    with pytest.raises(Exception, match=r"no route|expected sha256|gave 9 bytes") as caught:
        await tree.read(find(tree, b"local"), 0, 10)
    assert type(caught.value).__name__ == expected


async def test_a_stalled_layer_is_a_deadline(image_directory, autojump_clock):
    tree = client(image_directory, "stalled")
    with pytest.raises(trio.TooSlowError, match="no answer within 10 s"):
        await tree.read(find(tree, b"local"), 0, 10)
