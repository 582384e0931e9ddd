"""Removing what strangers made."""

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from lazyfs.removal import remove_tree
from tests.support.deep_trees import make_deep

NOBODY = "65534"


def test_no_tree_is_too_deep(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    make_deep(top, 3000)
    (top / "d/d/beside").touch()
    remove_tree(top)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_there_need_not_be_removed(tmp_path: Path) -> None:
    remove_tree(tmp_path / "absent")


def test_no_link_leads_out(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o500)
    (outside / "file").touch(mode=0o400)
    top = tmp_path / "top"
    (top / "inside").mkdir(parents=True)
    for number, target in enumerate((outside, outside / "file", top, "absent")):
        (top / f"inside/{number}").symlink_to(target)
    remove_tree(top)
    assert [path.name for path in tmp_path.iterdir()] == ["outside"]
    assert [oct(path.stat().st_mode & 0o777) for path in (outside, outside / "file")] == ["0o500", "0o400"]
    (tmp_path / "link").symlink_to(outside)
    with pytest.raises(NotADirectoryError):
        remove_tree(tmp_path / "link")
    assert (outside / "file").exists()


def test_modes_that_forbid_it_are_changed() -> None:
    program = (
        "import sys, pathlib; from lazyfs.removal import remove_tree; remove_tree(pathlib.Path(sys.argv[1]))"
    )
    nobody = ["setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]
    with tempfile.TemporaryDirectory() as place:  # pytest's own are for nobody else to enter
        Path(place).chmod(0o777)
        top = Path(place, "top")
        (top / "a/b").mkdir(parents=True)
        (top / "a/b/file").touch()
        for path, mode in ((top / "a/b/file", 0), (top / "a/b", 0), (top / "a", 0o400), (top, 0o500)):
            path.chmod(mode)
            os.chown(path, int(NOBODY), int(NOBODY))
        subprocess.run([*nobody, sys.executable, "-c", program, top], check=True)
        assert not top.exists()


def test_what_refuses_is_told_and_the_rest_goes(tmp_path: Path) -> None:
    top = tmp_path / "top"
    for name in ("a", "b", "c"):
        (top / name).mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "test", top / "b"], check=True)
    try:
        with pytest.raises(OSError) as refused:
            remove_tree(top)
        assert refused.value.errno == errno.EBUSY
        assert [path.name for path in top.iterdir()] == ["b"]
    finally:
        subprocess.run(["umount", top / "b"], check=True)
    remove_tree(top)
    assert not top.exists()
