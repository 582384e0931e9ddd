"""An upper directory, as the kernel's overlayfs leaves it, becomes a layer."""

import gzip
import io
import os
import shutil
import socket
import stat
import tarfile
import threading
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
import zstandard

from indexer.build import LayerBuilder
from indexer.toc import Kind
from lazyfs.container.layer_file import write_layer
from lazyfs.container.overlay import Overlay, mount_overlay, prepare
from lazyfs.container.upper import UpperMember, upper_members
from lazyfs.errors import ContainerError
from lazyfs.mount.mounts import unmount
from lazyfs.removal import remove_tree
from tests.support.deep_trees import make_deep

CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")  # cap_net_bind_service+ep


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A place with a lower tree."""
    lower = tmp_path / "lower"
    for directory in ("gone/below", "replaced", "kept/deep", "was-directory"):
        (lower / directory).mkdir(parents=True)
    for file in ("gone/below/a", "replaced/old", "kept/deep/a", "kept/b", "was-file", "was-directory/x"):
        (lower / file).write_text(file)
    lower.chmod(0o751)
    os.utime(lower, (5, 5))
    return tmp_path


@pytest.fixture
def root(place: Path) -> Iterator[Path]:
    """The lower tree, writable."""
    overlay = Overlay(
        place / "lower", place / "up/upper", place / "up/work", lasting=False, in_user_namespace=False
    )
    prepare(overlay)
    target = place / "root"
    target.mkdir()
    mount_overlay(overlay, target)
    yield target
    unmount(target)


@pytest.fixture
def upper(place: Path) -> Path:
    return place / "up/upper"


def by_path(upper: Path, *mount_points: str) -> dict[bytes, UpperMember]:
    return {one.member.path: one for one in upper_members(upper, mount_points)}


def layer(upper: Path, tmp_path: Path, compression: str = "gzip") -> tuple[bytes, object]:
    with (tmp_path / "layer").open("w+b") as file:
        written = write_layer(upper_members(upper), file.fileno(), compression)
        file.seek(0)
        return file.read(), written


def test_an_untouched_root_has_the_attributes_of_the_image(root, upper):
    (only,) = by_path(upper).values()
    assert (only.member.kind, only.member.mode, only.member.mtime_ns) == (Kind.DIRECTORY, 0o751, 5 * 10**9)
    assert (root.stat().st_mode, root.stat().st_mtime) == (0o40751, 5)


def test_what_was_removed_becomes_whiteouts_before_its_siblings(root, upper):
    shutil.rmtree(root / "gone")
    (root / "kept/b").unlink()
    (root / "kept/a-new").write_text("")
    names = list(by_path(upper))
    assert names == [b"", b".wh.gone", b"kept", b"kept/.wh.b", b"kept/a-new"]
    assert all(by_path(upper)[name].member.kind is Kind.REGULAR for name in names if b".wh." in name)


def test_a_directory_made_anew_hides_the_one_below(root, upper):
    shutil.rmtree(root / "replaced")
    (root / "replaced").mkdir()
    (root / "replaced/new").write_text("")
    assert list(by_path(upper)) == [b"", b"replaced", b"replaced/.wh..wh..opq", b"replaced/new"]


def test_what_changed_its_kind_needs_no_whiteout(root, upper):
    shutil.rmtree(root / "was-directory")
    (root / "was-directory").write_text("file")
    (root / "was-file").unlink()
    (root / "was-file").mkdir()
    found = by_path(upper)
    assert found[b"was-directory"].member.kind is Kind.REGULAR
    assert found[b"was-file"].member.kind is Kind.DIRECTORY
    assert set(found) <= {b"", b"was-directory", b"was-file", b"was-file/.wh..wh..opq"}


def test_kinds_owners_times_attributes_and_links_are_kept(root, upper):
    (root / "a").write_text("content")
    os.link(root / "a", root / "kept/z")
    os.setxattr(root / "a", "user.mine", b"\0value")
    os.chown(root / "a", 7, 8)
    (root / "a").chmod(0o4755)
    os.setxattr(root / "a", "security.capability", CAPABILITY)
    os.utime(root / "a", ns=(0, 1_234_567_890_123_456_789))
    (root / "link").symlink_to("../x")
    os.mkfifo(root / "fifo")
    os.mknod(root / "device", 0o20600, os.makedev(1, 3))
    found = {path: one.member for path, one in by_path(upper).items()}
    a = found[b"a"]
    assert (a.mode, a.uid, a.gid, a.size, a.mtime_ns) == (0o4755, 7, 8, 7, 1_234_567_890_123_456_789)
    assert dict(a.xattrs).keys() == {b"user.mine", b"security.capability"}
    assert (found[b"kept/z"].kind, found[b"kept/z"].link) == (Kind.HARDLINK, b"a")
    assert (found[b"link"].kind, found[b"link"].link) == (Kind.SYMLINK, b"../x")
    assert found[b"fifo"].kind is Kind.FIFO
    assert (found[b"device"].kind, found[b"device"].device) == (Kind.CHARACTER, (1, 3))


@pytest.mark.expect_log("socket")
def test_sockets_are_left_out(root, upper):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "s"))
    assert list(by_path(upper)) == [b""]


def test_mount_points_that_stayed_empty_are_not_the_containers_work(root, upper):
    (root / "mnt/data/deep").mkdir(parents=True)
    (root / "etc").mkdir()
    (root / "etc/hosts").write_text("")
    (root / "etc/hostname").write_text("changed")
    points = ["/mnt", "/mnt/data", "/mnt/data/deep", "/etc/hosts", "/etc/hostname"]
    assert list(by_path(upper, *points)) == [b"", b"etc", b"etc/hostname"]
    (root / "mnt/data/own").write_text("")
    assert b"mnt/data/own" in by_path(upper, *points)


@pytest.mark.parametrize("name", ["metacopy", "redirect"])
def test_what_refers_below_is_refused(root, upper, name):
    (root / "a").write_text("")
    os.setxattr(upper / "a", f"trusted.overlay.{name}", b"/elsewhere")
    with pytest.raises(ContainerError, match=name):
        by_path(upper)


def test_names_of_whiteouts_are_refused(root, upper):
    (root / ".wh.mine").write_text("")
    with pytest.raises(ContainerError, match="begins with"):
        by_path(upper)


def test_whiteouts_of_user_namespaces_count_too(tmp_path):
    upper = tmp_path / "upper"
    (upper / "d").mkdir(parents=True)
    (upper / "x").write_text("")
    os.setxattr(upper / "x", "user.overlay.whiteout", b"")
    os.setxattr(upper / "d", "user.overlay.opaque", b"y")
    os.setxattr(upper / "d", "user.other", b"1")
    found = by_path(upper)
    assert list(found) == [b"", b".wh.x", b"d", b"d/.wh..wh..opq"]
    assert found[b"d"].member.xattrs == ((b"user.other", b"1"),)


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_a_layer_is_a_tar_that_others_read_and_its_digests_are_true(root, upper, tmp_path, compression):
    (root / "big").write_bytes(os.urandom(3 << 20))
    with (root / "sparse").open("wb") as file:
        file.truncate(2 << 20)
    (root / ("long" * 40)).write_text("x")
    data, written = layer(upper, tmp_path, compression)
    assert (written.digest, written.size) == (f"sha256:{sha256(data).hexdigest()}", len(data))
    tar = data
    if compression == "gzip":
        tar = gzip.decompress(data)
    elif compression == "zstd":
        tar = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=True).read()
    assert written.diff_id == f"sha256:{sha256(tar).hexdigest()}"
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        names = [name for name in archive.getnames() if name != "."]
        assert names == ["big", "long" * 40, "sparse"]
        assert archive.extractfile("big").read() == (root / "big").read_bytes()
    again, _ = layer(upper, tmp_path, compression)
    assert again == data
    with LayerBuilder(len(data), written.digest) as builder:
        builder.feed(data)
        toc = builder.finish().toc
    assert toc.header.diff_id == written.diff_id
    assert len(toc.spans) > 5  # it can be entered


def test_a_file_that_becomes_shorter_meanwhile_is_an_error(tmp_path):
    upper = tmp_path / "upper"
    upper.mkdir()
    (upper / "a").write_bytes(bytes(5 << 20))

    def members() -> Iterator[UpperMember]:
        for one in upper_members(upper):
            if one.member.path == b"a":
                (upper / "a").write_bytes(b"short")
            yield one

    with (tmp_path / "layer").open("wb") as file, pytest.raises(ContainerError, match="shorter"):
        write_layer(members(), file.fileno(), "gzip")


def test_what_a_container_calls_like_overlayfs_s_marks_are_its_own(root: Path, upper: Path) -> None:
    (root / "empty").touch()
    for path, name in (("empty", "whiteout"), ("kept", "opaque"), ("kept", "redirect")):
        for prefix in ("user", "trusted"):  # the kernel escapes what it would take for its own
            os.setxattr(root / path, f"{prefix}.overlay.{name}", b"y")
    found = {one.member.path: one.member for one in upper_members(upper, user_marks=False)}
    assert found.keys() == {b"", b"empty", b"kept"}
    assert dict(found[b"kept"].xattrs) == {
        os.fsencode(name): os.getxattr(root / "kept", name) for name in os.listxattr(root / "kept")
    }


def test_directories_may_be_deep_but_no_deeper_than_a_path_is_long(tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    upper.mkdir()
    make_deep(upper, 1500)
    assert sum(1 for _ in upper_members(upper)) == 1502
    remove_tree(upper)
    upper.mkdir()
    make_deep(upper, 3000)
    with pytest.raises(ContainerError, match="too deep") as raised:
        list(upper_members(upper))
    assert len(str(raised.value)) < 200
    remove_tree(upper)


def test_what_goes_while_it_is_walked_is_not_there(tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    (upper / "d").mkdir(parents=True)
    for name in ("a", "linked", "z"):
        (upper / name).touch()
    (upper / "zz").hardlink_to(upper / "linked")
    found = []
    for one in upper_members(upper):
        found.append(one.member)
        if one.member.path == b"a":
            (upper / "d").rmdir()
            (upper / "linked").unlink()
            (upper / "z").unlink()
    assert [(one.path, one.kind) for one in found[1:]] == [(b"a", Kind.REGULAR), (b"zz", Kind.REGULAR)]


def test_what_is_deleted_or_replaced_while_it_is_walked_is_what_it_is_then(tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    (upper / "d").mkdir(parents=True)
    for name in ("a", "gone"):
        (upper / name).touch()
    (upper / "link").symlink_to("a")
    found = []
    for one in upper_members(upper):
        found.append(one.member)
        if one.member.path == b"a":  # as overlayfs does it for a file that is below as well
            (upper / "gone").unlink()
            os.mknod(upper / "gone", stat.S_IFCHR, 0)
            (upper / "d").rmdir()
            (upper / "d").symlink_to("a")
            (upper / "link").unlink()
            (upper / "link").mkdir()
    assert [(one.path, one.kind) for one in found[1:]] == [
        *((b"a", Kind.REGULAR), (b"d", Kind.SYMLINK), (b".wh.gone", Kind.REGULAR), (b"link", Kind.DIRECTORY))
    ]


def test_a_file_that_was_replaced_by_something_else_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at it and its opening; a device in its place would be this machine's."""
    upper = tmp_path / "upper"
    upper.mkdir()
    (upper / "a").write_text("a")
    really = os.open

    def replaced(path: object, *rest: int, **named: int) -> int:
        if path == b"a":
            (upper / "a").unlink(missing_ok=True)
            os.mknod(upper / "a", 0o600 | stat.S_IFCHR, os.makedev(1, 5))
        return really(path, *rest, **named)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(os, "open", replaced)
    _, (member, content) = upper_members(upper)
    assert (member.path, member.kind, member.device, content) == (b"a", Kind.CHARACTER, (1, 5), -1)


def test_a_container_cannot_lead_the_walk_out_of_its_directory(tmp_path):
    """A directory that is exchanged for a symbolic link while it is walked is not followed."""
    upper, secret = tmp_path / "upper", tmp_path / "secret"
    (upper / "a").mkdir(parents=True)
    secret.mkdir()
    (secret / "key").write_text("secret")
    stop = threading.Event()

    def exchange() -> None:
        (upper / "b").symlink_to(secret)
        while not stop.is_set():
            (upper / "a").rename(upper / "c")
            (upper / "b").rename(upper / "a")
            (upper / "c").rename(upper / "b")

    thread = threading.Thread(target=exchange)
    thread.start()
    try:
        for _ in range(200):
            try:
                assert not any(b"key" in one.member.path for one in upper_members(upper))
            except OSError:
                continue
    finally:
        stop.set()
        thread.join()


def test_many_small_files_are_compressed_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else several layers that are made at once wait for Python's lock most of the time."""
    upper, sizes, really = tmp_path / "upper", [], os.write
    upper.mkdir()
    for number in range(3000):
        (upper / str(number)).write_bytes(os.urandom(100))

    def write(descriptor: int, data: bytes) -> int:
        sizes.append(len(data))
        return really(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    layer(upper, tmp_path)
    assert len(sizes) < 10
