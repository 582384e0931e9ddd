"""The directories of snapshots."""

import os
from typing import Any

from lazyfs.snapshotter.directories import Directories


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
