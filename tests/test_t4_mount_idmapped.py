"""Idmapped mounts of our trees, by the real kernel: owners are shifted, contents and modes are not."""

import os
import subprocess
from pathlib import Path

import pytest

from lazyfs.mount.mounts import mount_at
from tests.support.idmapped import OVERFLOW, idmapped, user_namespace
from tests.support.mount_server import directory, file, mounted, symlink, write_image
from tests.support.overlay import overlay_mounted

ENTRIES = [
    directory(b"d", uid=1000, gid=1001, mode=0o2775),
    file(b"d/root", b"of root", mode=0o600),
    file(b"d/user", b"u" * 300_000, uid=1000, gid=1001, mode=0o640),
    file(b"d/beyond", b"b" * 5000, uid=70_000, gid=70_001),
    file(b"d/acl", b"x", uid=5, gid=6, xattrs=((b"user.word", b"value"),)),
    symlink(b"d/link", b"user"),
]
FIRST, FIRST_GID = 200_000, 300_000


@pytest.fixture(params=["fuse", "erofs"])
def driver(request) -> str:
    return request.param


@pytest.fixture
def image(tmp_path) -> Path:
    return write_image(tmp_path / "image", [ENTRIES])


def owners(root: Path) -> dict[str, tuple[int, int]]:
    paths = [root, *root.rglob("*")]
    return {str(path.relative_to(root)): (path.lstat().st_uid, path.lstat().st_gid) for path in paths}


SHIFTED = {
    ".": (FIRST, FIRST_GID),
    "d": (FIRST + 1000, FIRST_GID + 1001),
    "d/root": (FIRST, FIRST_GID),
    "d/user": (FIRST + 1000, FIRST_GID + 1001),
    "d/beyond": (OVERFLOW, OVERFLOW),
    "d/acl": (FIRST + 5, FIRST_GID + 6),
    "d/link": (FIRST, FIRST_GID),
}


def contents(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / "d").iterdir() if path.name != "beyond"}


def test_an_idmapped_clone_shows_other_owners_and_the_same_bytes(image, tmp_path, driver):
    point = tmp_path / "mnt"
    with (
        mounted(image, point, driver=driver) as server,
        user_namespace(FIRST, first_gid=FIRST_GID) as namespace,
        idmapped(point, tmp_path / "clone", namespace) as clone,
    ):
        assert b"idmapped" in mount_at(clone).options
        assert owners(clone) == SHIFTED
        assert owners(point)["d/user"] == (1000, 1001)
        assert (clone / "d").stat().st_mode & 0o7777 == 0o2775
        assert os.getxattr(clone / "d/acl", "user.word") == b"value"
        with pytest.raises(OSError, match="Read-only"):
            (clone / "d/new").touch()
        assert contents(clone) == contents(point)
        assert (clone / "d/beyond").read_bytes() == b"b" * 5000
        assert "WARNING" not in server.logged


def test_overlayfs_takes_idmapped_clones_as_its_lower_directories(image, tmp_path, driver):
    other = write_image(tmp_path / "upper", [[directory(b"d", uid=7, gid=8), file(b"d/user", b"2", uid=9)]])
    with (
        mounted(image, tmp_path / "mnt", driver=driver),
        mounted(other, tmp_path / "mnt2", driver=driver),
        user_namespace(FIRST, first_gid=FIRST_GID) as namespace,
        idmapped(tmp_path / "mnt", tmp_path / "clone", namespace) as low,
        idmapped(tmp_path / "mnt2", tmp_path / "clone2", namespace) as high,
        overlay_mounted([low, high], tmp_path / "o") as merged,
    ):
        assert owners(merged) == SHIFTED | {
            "d": (FIRST + 7, FIRST_GID + 8),
            "d/user": (FIRST + 9, FIRST_GID),
        }
        assert contents(merged) == contents(low) | {"user": b"2", "link": b"2"}


def test_a_program_of_the_namespace_may_what_its_users_may(image, tmp_path, driver):
    """Who is root there owns what root owns, and the kernel judges modes by shifted owners."""
    point = tmp_path / "mnt"
    with (
        mounted(image, point, driver=driver),
        user_namespace(FIRST, first_gid=FIRST_GID) as namespace,
        idmapped(point, tmp_path / "clone", namespace) as clone,
    ):
        for uid, gid, name, may in [
            (FIRST, FIRST_GID, "root", True),
            (FIRST + 1, FIRST_GID + 1, "root", False),
            (FIRST + 1, FIRST_GID + 1001, "user", True),
            (1000, 1001, "user", False),
        ]:
            assert _may_read(clone, f"d/{name}", uid, gid) == may, (uid, gid, name)


def _may_read(root: Path, name: str, uid: int, gid: int) -> bool:
    """Whether a user can read a file below a directory that only root can reach."""
    top = os.open(root, os.O_PATH)
    try:
        command = ["cat", f"/proc/self/fd/{top}/{name}"]
        done = subprocess.run(
            command, user=uid, group=gid, extra_groups=[], pass_fds=[top], capture_output=True, check=False
        )
    finally:
        os.close(top)
    assert done.returncode == 0 or b"Permission denied" in done.stderr
    return done.returncode == 0
