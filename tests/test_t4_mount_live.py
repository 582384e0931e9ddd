"""The fuse driver, mounted for real and used by ordinary programs."""

import mmap
import os
import shutil
import signal
import stat
import subprocess
from pathlib import Path

import pytest

from indexer.erofs.read import MetadataImage
from indexer.toc import Kind
from lazyfs.errors import MountError
from lazyfs.mount.fuse_mount import check_mount_point
from tests.support.mount_server import (
    PATIENCE_S,
    TWO_LAYERS,
    Server,
    directory,
    error_of,
    file,
    hardlink,
    is_waiting,
    mounted,
    open_image,
    special,
    started,
    symlink,
    wait_until,
    write_image,
)

NOBODY = 65534
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
CONTENT = os.urandom(3_000_000)
MANY = 50_000
DEPTH = 1000

LOWER = [
    file(b"big", CONTENT, mtime_ns=1_234_567_890_123_456_789),
    hardlink(b"dir/again", b"big", mtime_ns=1_234_567_890_123_456_789),
    directory(b"dir", mode=0o1777, uid=1, gid=2, mtime_ns=-1),
    symlink(b"dir/link", b"../big"),
    symlink(b"dangling", b"/no/such"),
    symlink(b"long link", b"./" * 2000 + b"big"),
    file(b"true", Path("/bin/true").read_bytes(), mode=0o755),
    file(b"secret", b"for root", mode=0o600),
    file(b"empty"),
    special(b"null", Kind.CHARACTER, (1, 3), mode=0o666),
    special(b"pipe", Kind.FIFO),
    file(b"ping", b"x", xattrs=((b"security.capability", CAPABILITY), (b"user.a", b"v" * 3000))),
    *[file(name, name) for name in (b"!before the dots", b"-", b"...", b"\xff\xfe\n", b"n" * 255)],
    directory(b"nothing in it"),
]
UPPER = [file(b"upper", b"of the other layer"), *[file(b"many/%05d" % n) for n in range(MANY)]]
DEEP = [directory(b"/".join([b"deep", *[b"d"] * (DEPTH - 2), b"end"]))]


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    return write_image(tmp_path_factory.mktemp("live") / "image", [LOWER, UPPER, DEEP])


@pytest.fixture(scope="module")
def server(image, tmp_path_factory):
    with mounted(image, tmp_path_factory.mktemp("live") / "mnt", "local", "remote") as server:
        yield server
        assert server.logged == ""


@pytest.fixture(scope="module")
def tree(server: Server) -> Path:
    return server.mount_point


@pytest.fixture
def metadata(image) -> MetadataImage:
    return open_image(image)


def run_as_nobody(directory: Path, *command: str | Path) -> subprocess.CompletedProcess:
    """Runs in the directory, whoever may not search the directories above it."""
    return subprocess.run(
        command,
        cwd=directory,
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_mount_table_names_the_image(server):
    assert server.mount.fstype == b"fuse.lazyfs"
    assert server.mount.source == b"lazyfs:example.org/image:1"
    assert {b"ro", b"nosuid", b"nodev"} <= server.mount.options


def test_the_mounted_tree_is_the_images(tree, metadata):
    root = os.fsencode(tree)
    names, checked = set(), 0
    for path, inode in metadata.walk():
        names.add(path)
        if path.startswith((b"many/", b"deep/d/d")):
            continue
        place = root + b"/" + path
        found = os.lstat(place)
        assert (found.st_ino, found.st_mode, found.st_nlink) == (inode.nid, inode.mode, inode.nlink)
        assert (found.st_uid, found.st_gid, found.st_size) == (inode.uid, inode.gid, inode.size)
        assert (found.st_mtime_ns, found.st_rdev) == (inode.mtime_ns, inode.rdev)
        assert found.st_atime_ns == found.st_ctime_ns == inode.mtime_ns
        xattrs = {os.fsencode(name): os.getxattr(place, name, follow_symlinks=False) for name in _list(place)}
        assert xattrs == metadata.xattrs(inode.nid)
        if stat.S_ISLNK(inode.mode):
            assert os.readlink(place) == metadata.readlink(inode.nid)  # noqa: PTH115  # bytes
        checked += 1
    assert checked > len(LOWER)
    command = ["find", ".", "-mindepth", "1", "-print0"]
    walked = subprocess.run(command, cwd=tree, capture_output=True, check=True).stdout
    assert {b"./" + name for name in names if name} == set(walked.split(b"\0")) - {b""}


def _list(place: bytes) -> list[str]:
    return os.listxattr(place, follow_symlinks=False)


def test_files_hold_what_their_layers_hold(tree):
    assert (tree / "big").read_bytes() == CONTENT
    assert (tree / "dir/link").read_bytes() == CONTENT
    assert (tree / "upper").read_bytes() == b"of the other layer"
    assert (tree / "empty").read_bytes() == b""
    with (tree / "big").open("rb") as opened:
        for offset, size in ((2_999_999, 10), (4095, 2), (131_071, 262_146), (3_000_000, 1)):
            assert os.pread(opened.fileno(), size, offset) == CONTENT[offset : offset + size]


def test_hard_links_are_one_inode(tree):
    assert (tree / "big").samefile(tree / "dir/again")
    assert (tree / "big").stat().st_nlink == 2


def test_a_directory_of_50_000_is_listed_whole_once_each_with_dots(tree):
    listed = subprocess.run(["ls", "-f", tree / "many"], capture_output=True, check=True).stdout.split()
    assert len(listed) == MANY + 2
    assert set(listed) == {b".", b"..", *(b"%05d" % number for number in range(MANY))}


def test_entries_know_their_inode_numbers(tree):
    with os.scandir(tree) as entries:
        assert all(entry.inode() == entry.stat(follow_symlinks=False).st_ino for entry in entries)
    listed = subprocess.run(["ls", "-fi", tree / "dir"], capture_output=True, check=True, text=True).stdout
    numbers = {name: int(number) for number, name in (line.split() for line in listed.splitlines())}
    assert numbers["."] == (tree / "dir").stat().st_ino
    assert numbers[".."] == tree.stat().st_ino == 1


def test_a_thousand_directories_deep_can_be_entered(tree):
    here = os.open(tree / "deep", os.O_RDONLY)
    for name in [*["d"] * (DEPTH - 2), "end"]:
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    with os.scandir(here) as entries:
        assert list(entries) == []
    os.close(here)


def test_a_file_is_mapped_and_run(tree):
    with (tree / "big").open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[:] == CONTENT
    assert subprocess.run([tree / "true"], check=False).returncode == 0


def test_nothing_can_be_changed(tree):
    big, new = tree / "big", tree / "new"
    for call, *arguments in (
        (os.open, big, os.O_WRONLY),
        (os.open, big, os.O_RDWR),
        (os.open, big, os.O_RDONLY | os.O_TRUNC),
        (os.open, new, os.O_WRONLY | os.O_CREAT),
        (os.truncate, big, 0),
        (os.mkdir, new),
        (os.mknod, new),
        (os.symlink, "a", new),
        (os.link, big, new),
        (os.unlink, big),
        (os.rmdir, tree / "nothing in it"),
        (os.rename, big, new),
        (os.chmod, big, 0o777),
        (os.chown, big, 1, 1),
        (os.utime, big),
        (os.setxattr, big, "user.b", b""),
        (os.removexattr, tree / "ping", "user.a"),
    ):
        assert error_of(call, *arguments) == "EROFS", call.__name__


def test_what_is_missing_is_missing(tree):
    assert error_of(os.stat, tree / "missing") == "ENOENT"
    assert error_of(os.stat, tree / "missing") == "ENOENT"
    assert error_of(os.stat, tree / "big/below") == "ENOTDIR"
    assert error_of(os.stat, tree / ("n" * 256)) == "ENAMETOOLONG"
    assert error_of(os.stat, tree / "dangling") == "ENOENT"
    assert error_of(os.getxattr, tree / "ping", "user.none") == "ENODATA"


def test_df_shows_the_size_of_the_image_and_nothing_free(tree, metadata):
    data = os.statvfs(tree)
    assert data.f_blocks * data.f_frsize == metadata.total_size
    assert (data.f_files, data.f_bfree, data.f_bavail, data.f_ffree) == (metadata.inode_count, 0, 0, 0)
    assert data.f_namemax == 255


def test_other_users_see_an_ordinary_file_system(tree):
    assert run_as_nobody(tree, "cat", "upper").stdout == "of the other layer"
    refused = run_as_nobody(tree, "cat", "secret")
    assert "Permission denied" in refused.stderr


def test_setuid_and_devices_count_only_if_asked(image, tree, tmp_path):
    identify = write_image(
        tmp_path / "image",
        [
            [
                file(b"id", Path(shutil.which("id")).read_bytes(), mode=0o4755),
                special(b"null", Kind.CHARACTER, (1, 3), mode=0o666),
            ]
        ],
    )
    with mounted(identify, tmp_path / "safe") as server:
        assert run_as_nobody(server.mount_point, "./id", "-u").stdout == f"{NOBODY}\n"
        assert error_of(os.open, server.mount_point / "null", os.O_RDONLY) == "EACCES"
    with mounted(identify, tmp_path / "full", setuid=True, devices=True) as server:
        assert run_as_nobody(server.mount_point, "./id", "-u").stdout == "0\n"
        assert (server.mount_point / "null").read_bytes() == b""
        assert not {b"nosuid", b"nodev"} & server.mount.options


ACL = bytes.fromhex(  # user::rw-, user:65534:---, group::r--, mask::r--, other::r--
    "02000000" "0100" "0600" "ffffffff" "0200" "0000" "feff0000" "0400" "0400" "ffffffff"
    "1000" "0400" "ffffffff" "2000" "0400" "ffffffff"
)  # fmt: skip


def test_acls_are_enforced(tmp_path):
    image = write_image(
        tmp_path / "image",
        [
            [
                file(b"open", b"1", mode=0o644),
                file(b"closed", b"2", mode=0o644, xattrs=((b"system.posix_acl_access", ACL),)),
            ]
        ],
    )
    with mounted(image, tmp_path / "mnt") as server:
        assert run_as_nobody(server.mount_point, "cat", "open").stdout == "1"
        assert "Permission denied" in run_as_nobody(server.mount_point, "cat", "closed").stderr
        assert os.getxattr(server.mount_point / "closed", "system.posix_acl_access") == ACL
        assert (server.mount_point / "closed").read_bytes() == b"2"


def test_a_warm_tree_asks_its_server_nothing(two_layers, tmp_path):
    """Opening, listing, reading and looking again, with the server stopped: it could not answer."""

    def use(tree: Path) -> None:
        for path in sorted(tree.rglob("*")):
            opened = os.open(path, os.O_RDONLY)  # Python's own open asks whether it is a terminal
            assert len(os.read(opened, 1_000_000)) == path.stat().st_size
            os.close(opened)
        assert not (tree / "missing").exists()

    with mounted(two_layers, tmp_path / "mnt") as server:
        use(server.mount_point)
        server.process.send_signal(signal.SIGSTOP)
        try:
            use(server.mount_point)
        finally:
            server.process.send_signal(signal.SIGCONT)


def test_the_kernels_knobs_are_set(tmp_path):
    image = write_image(tmp_path / "image", [[file(b"a")]])
    with mounted(image, tmp_path / "mnt", read_ahead_kb=16) as server:
        major, minor = server.mount.device
        assert Path(f"/sys/class/bdi/{major}:{minor}/read_ahead_kb").read_text() == "16\n"


@pytest.fixture
def two_layers(tmp_path):
    return write_image(tmp_path / "image", TWO_LAYERS)


def test_the_daemon_ends_when_anybody_unmounts(two_layers, tmp_path):
    with mounted(two_layers, tmp_path / "mnt") as server:
        subprocess.run(["umount", server.mount_point], check=True)
        assert server.process.wait(PATIENCE_S) == 0
        assert server.logged == ""


def test_the_mount_ends_when_the_daemon_is_told_to(two_layers, tmp_path):
    with mounted(two_layers, tmp_path / "mnt", "local", "stalled", read_timeout_s=1000) as server:
        assert server.terminate() == 0
        assert server.mount is None
        assert server.logged == ""


def test_a_mount_in_use_is_taken_from_its_users_when_the_daemon_is_told_to_end(two_layers, tmp_path):
    how = {"read_timeout_s": 1000}
    with (
        mounted(two_layers, tmp_path / "mnt", "local", "stalled", **how) as server,
        (server.mount_point / "here").open("rb", buffering=0) as held,
    ):
        reader = subprocess.Popen(["cat", server.mount_point / "away"], stderr=subprocess.PIPE, text=True)
        wait_until(lambda: is_waiting(reader.pid))
        assert server.terminate() == 0
        assert server.mount is None
        _, said = reader.communicate(timeout=PATIENCE_S)
        assert (reader.returncode, "not connected" in said) == (1, True)
        assert error_of(held.read) == "ENOTCONN"
        assert "still in use" in server.logged


def test_another_mount_over_ours_is_left_alone(two_layers, tmp_path):
    with mounted(two_layers, tmp_path / "mnt") as server:
        subprocess.run(["mount", "-t", "tmpfs", "over", server.mount_point], check=True)
        assert server.terminate() == 0
        assert server.mount.source == b"over"


def test_two_mounts_at_one_place_are_refused(two_layers, tmp_path):
    place = tmp_path / "mnt"
    with mounted(two_layers, place), started(two_layers, place / ".." / "mnt") as second:
        said = second.said()
        assert second.process.wait(PATIENCE_S) == 0
        assert second.mount is not None
        assert said == (
            f"AlreadyMounted: {place} has an image mounted on it: lazyfs umount {place}, "
            "or choose another directory"
        )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("file", "is not a directory"),
        ("link", "does not exist: create the directory first"),
        ("missing/below", "does not exist: create the directory first"),
        ("file/below", "Not a directory"),
    ],
)
def test_a_place_that_cannot_be_mounted_on_is_refused_in_words(tmp_path, name, expected):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(MountError, match=expected):
        check_mount_point(tmp_path / name)
