"""The directories of snapshots."""

import os
from typing import Any

import pytest

from lazyfs.snapshotter.directories import Directories
from lazyfs.snapshotter.model import DiskRefused
from tests.support.deep_trees import make_deep


def test_a_directory_that_two_remove_at_once_is_gone_in_the_end(tmp_path, monkeypatch) -> None:
    directories = Directories(tmp_path / "snapshots")
    directories.make(1)
    for number in range(3):
        (directories.upper(1) / f"file{number}").touch()
    unlink = os.unlink

    def unlink_first(path: Any, *, dir_fd: int) -> None:
        unlink(path, dir_fd=dir_fd)  # the other one was faster
        unlink(path, dir_fd=dir_fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", unlink_first)
        directories.remove(1)
    assert directories.stray(set()) == []
    directories.remove(1)


def test_what_a_container_made_too_deep_to_measure_is_told_and_can_be_removed(tmp_path) -> None:
    directories = Directories(tmp_path / "snapshots")
    directories.make(1)
    make_deep(directories.upper(1), 3000)
    with pytest.raises(DiskRefused, match="cannot measure a snapshot: File name too long"):
        directories.usage(1)
    directories.remove(1)
    assert directories.stray(set()) == []
