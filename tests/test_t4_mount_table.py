"""The mount table, and unmounting."""

import os
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.errors import MountError, NotMounted
from lazyfs.mount.mounts import (
    Busy,
    mount_at,
    parse_mount_table,
    resolve_mount_point,
    topmost,
    unmount,
    unmount_apart,
)
from tests.support.mount_server import file, mounted, write_image

# From proc_pid_mountinfo(5), and what a namespace with propagation and escapes looks like.
TABLE = rb"""36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
41 27 0:38 / /a\040b\134c\011d ro,nosuid,nodev shared:7 propagate_from:2 - fuse.lazyfs lazyfs:x\040y r
42 27 0:39 / /plain rw - tmpfs  rw
43 42 0:40 / /plain ro - erofs none ro
44 43 0:41 / /plain ro - tmpfs top rw
"""


def test_a_mount_table_is_read_with_optional_fields_escapes_and_empty_sources():
    first, second, third, *_ = parse_mount_table(TABLE)
    assert (first.mount_id, first.parent_id, first.device, first.root) == (36, 35, (98, 0), b"/mnt1")
    assert first.options == {b"rw", b"noatime"}
    assert (first.fstype, first.source) == (b"ext3", b"/dev/root")
    assert second.mount_point == b"/a b\\c\td"
    assert (second.fstype, second.source) == (b"fuse.lazyfs", b"lazyfs:x y")
    assert third.source == b""


def test_of_mounts_over_each_other_the_topmost_counts_in_any_order():
    mounts = parse_mount_table(TABLE)
    for some in (mounts, mounts[::-1], mounts[2:] + mounts[:2]):
        found = topmost(some, b"/plain")
        assert found is not None
        assert found.source == b"top"
    assert topmost(mounts, b"/plai") is None


@given(
    st.lists(
        st.binary(min_size=1, max_size=20).filter(lambda name: b"\0" not in name), min_size=4, max_size=4
    )
)
def test_any_bytes_survive_the_kernels_escapes(fields):
    def escape(field: bytes) -> bytes:  # fs/proc_namespace.c, mangle()
        return b"".join(b"\\%03o" % byte if byte in b" \t\n\\#" else bytes([byte]) for byte in field)

    root, mount_point, fstype, source = fields
    fstype = b"".join(fstype.split()) or b"none"
    line = b"1 2 3:4 %s %s rw - %s %s rw" % (escape(root), escape(mount_point), fstype, escape(source))
    (mount,) = parse_mount_table(line + b"\n")
    assert (mount.root, mount.mount_point, mount.source) == (root, mount_point, source)


@pytest.mark.parametrize("name", ["plain", "a space", "tab\tand\nnewline", "back\\slash\\040", "h#sh", "ü"])
async def test_the_kernel_tells_of_a_mount_at_any_name_and_it_is_unmounted(tmp_path, name):
    place = tmp_path / name
    place.mkdir()
    await trio.run_process(["mount", "-t", "tmpfs", f"a {name}", place])
    found = mount_at(place)
    unmount(place)
    assert found is not None
    assert (found.mount_point, found.fstype) == (os.fsencode(place), b"tmpfs")
    assert found.source == os.fsencode(f"a {name}")
    assert mount_at(place) is None


def test_a_mount_point_is_named_as_the_kernel_names_it(tmp_path, monkeypatch):
    real = tmp_path / "real"
    (real / "sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "chain").symlink_to(tmp_path / "link")
    (tmp_path / "up").symlink_to("link/sub/..")
    monkeypatch.chdir(tmp_path)
    expected = os.fsencode(real)
    for given_path in ("real", "link", "chain", "up", "real/", "real/sub/..", "real/.", "link/sub/.."):
        assert resolve_mount_point(Path(given_path)) == expected, given_path
    assert resolve_mount_point(Path("link/missing")) == expected + b"/missing"
    assert resolve_mount_point(Path("link/sub")) == expected + b"/sub"


def test_links_in_a_circle_are_refused(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(MountError, match="too many symbolic links"):
        resolve_mount_point(tmp_path / "a")


def test_what_is_not_mounted_cannot_be_unmounted(tmp_path):
    with pytest.raises(NotMounted, match="nothing is mounted at"):
        unmount(tmp_path)


def test_a_mount_in_use_is_unmounted_only_lazily(tmp_path):
    image = write_image(tmp_path / "image", [[file(b"held", b"data" * 2000)]])
    with mounted(image, tmp_path / "mnt") as server:
        with (server.mount_point / "held").open("rb") as held:
            with pytest.raises(Busy, match=r"in use.*lazily"):
                unmount(server.mount_point)
            unmount(server.mount_point, lazy=True)
            assert mount_at(server.mount_point) is None
            assert held.read() == b"data" * 2000  # its user goes on
            assert server.process.poll() is None
        assert server.process.wait(30) == 0  # and was the last


def test_a_dead_mount_is_found_and_unmounted(tmp_path):
    image = write_image(tmp_path / "image", [[file(b"a")]])
    with mounted(image, tmp_path / "mnt") as server:
        server.process.kill()
        server.process.wait()
        with pytest.raises(OSError, match="not connected"):
            list(server.mount_point.iterdir())
        assert mount_at(server.mount_point).fstype == b"fuse.lazyfs"
        unmount(server.mount_point)
        assert mount_at(server.mount_point) is None


def test_another_process_unmounts_for_us_or_says_no(tmp_path):
    image = write_image(tmp_path / "image", [[file(b"held", b"data")]])
    with mounted(image, tmp_path / "mnt") as server:
        with (server.mount_point / "held").open("rb"):
            assert not unmount_apart(server.mount_point)
        assert unmount_apart(server.mount_point)
        assert mount_at(server.mount_point) is None
    assert not unmount_apart(tmp_path)
