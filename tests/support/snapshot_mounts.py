"""What containerd does with the mounts that a snapshotter answers, and a stack of layers made that way."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.oracle import compare_trees
from tests.support.snapshot_client import SnapshotClient

Change = Callable[[Path], object]

# Overlayfs gives directories other times and counts than a plain copy has.
NOT_THE_SAME = ("mtime", "nlink", "hard links")


@contextmanager
def mounted(mounts: Sequence[Any], point: Path) -> Iterator[Path]:
    """A snapshot's mounts, made at a directory, which is made too."""
    point.mkdir(parents=True, exist_ok=True)
    for mount in mounts:
        _mount(mount, point)
    try:
        yield point
    finally:
        subprocess.run(["umount", point], check=True)


def _mount(mount: Any, point: Path) -> None:
    """One mount; lower directories are named from where they have in common, or a page does not hold them."""
    options, folder = list(mount.options), Path("/")
    lowers = next((o.removeprefix("lowerdir=").split(":") for o in options if o.startswith("lowerdir=")), [])
    if lowers:
        folder = Path(os.path.commonpath([*lowers, *(str(Path(lower).parent) for lower in lowers)]))
        options[-1] = "lowerdir=" + ":".join(os.path.relpath(lower, folder) for lower in lowers)
    kind = ["--bind"] if mount.type == "bind" else ["-t", mount.type]
    words = [*kind, "-o", ",".join(option for option in options if option != "rbind"), mount.source]
    subprocess.run(["mount", *words, str(point)], check=True, cwd=folder)
    if mount.type == "bind" and "ro" in options:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(point)], check=True)


class Stack:
    """Layers committed one upon the other, and a plain directory to which the same was done.

    Args:
        client: of the snapshotter.
        work: a directory to work in.
        base: the committed snapshot that the first layer stands on; "" for none.
        content: what that shows.
    """

    def __init__(
        self, client: SnapshotClient, work: Path, base: str = "", content: Path | None = None
    ) -> None:
        self.client = client
        self.top = base
        self.flat = work / "flat"
        self._work = work
        self._count = 0
        if content is None:
            self.flat.mkdir()
        else:
            shutil.copytree(content, self.flat, symlinks=True)

    def add(self, *changes: Change) -> str:
        """Prepare, check what is below, change, commit; the new top's name."""
        self._count += 1
        key, name = f"preparing {self._count}", f"layer {self._count}"
        with mounted(self.client.prepare(key, self.top), self._work / key) as point:
            assert compare_trees(self.flat, point, ignore=NOT_THE_SAME) == []
            for change in changes:
                change(self.flat)
                change(point)
            assert compare_trees(self.flat, point, ignore=NOT_THE_SAME) == []
        self.client.commit(name, key)
        self.top = name
        return name

    def check(self) -> None:
        """A view of the top shows what was done."""
        with mounted(self.client.view("view", self.top), self._work / "view") as point:
            assert compare_trees(self.flat, point, ignore=NOT_THE_SAME) == []
        self.client.remove("view")


def write(path: str, content: str, mode: int = 0o644) -> Change:
    def change(top: Path) -> None:
        (top / path).write_text(content)
        (top / path).chmod(mode)

    return change


def make(path: str, mode: int = 0o755) -> Change:
    def change(top: Path) -> None:
        (top / path).mkdir()
        (top / path).chmod(mode)

    return change


def own(path: str, user: int) -> Change:
    return lambda top: os.chown(top / path, user, user)


def delete(path: str) -> Change:
    def change(top: Path) -> None:
        if (top / path).is_dir():
            shutil.rmtree(top / path)
        else:
            (top / path).unlink()

    return change


def rename(path: str, other: str) -> Change:
    return lambda top: (top / path).rename(top / other)


def link(path: str, other: str) -> Change:
    return lambda top: (top / other).hardlink_to(top / path)
