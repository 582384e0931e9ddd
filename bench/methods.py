"""Ways to have the tree: unpacked, by lazyfs with either driver, by ratarmount."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.link import Link
from bench.measure import MethodFailed
from bench.world import World, empty_directory

DRIVERS: Final = ("erofs", "fuse")
_START_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Mounted:
    """The tree, to be used.

    Attributes:
        root: its root.
        pids: processes that serve it.
    """

    root: Path
    pids: tuple[int, ...] = ()


class Methods:
    """The methods by name, each set up when first used and kept until the world ends."""

    def __init__(self, world: World) -> None:
        self._mounted: dict[str, Mounted] = {}
        self._failed: dict[str, str] = {}
        self._makers: dict[str, Callable[[], Mounted]] = {
            file_system_of(world.scratch): lambda: Mounted(world.tree.unpacked),
            **{f"lazyfs {driver}": _maker(world, driver) for driver in DRIVERS},
            "ratarmount": lambda: world.stack.enter_context(ratarmount(world)),
        }

    @property
    def names(self) -> tuple[str, ...]:
        """All methods, the unpacked tree first."""
        return tuple(self._makers)

    def __getitem__(self, name: str) -> Mounted:
        """The tree by this method.

        Raises:
            MethodFailed: it does not work here.
        """
        if name in self._failed:
            raise MethodFailed(self._failed[name])
        if name not in self._mounted:
            try:
                self._mounted[name] = self._makers[name]()
            except MethodFailed as failed:
                self._failed[name] = str(failed)
                raise
        return self._mounted[name]

    def pids(self, name: str) -> tuple[int, ...]:
        """Processes that serve it, if it was set up."""
        return self._mounted[name].pids if name in self._mounted else ()


def file_system_of(path: Path) -> str:
    """The type of file system that holds `path`."""
    done = subprocess.run(
        ["stat", "--file-system", "--format=%T", path], check=True, capture_output=True, text=True
    )
    name = done.stdout.strip()
    return "ext4" if name == "ext2/ext3" else name


def _maker(world: World, driver: str) -> Callable[[], Mounted]:
    return lambda: world.stack.enter_context(lazyfs_mount(world, driver, world.tree.reference, world.cache))


@contextmanager
def lazyfs_mount(
    world: World, driver: str, reference: str, cache: Path, link: Link | None = None
) -> Iterator[Mounted]:
    """An image mounted by lazyfs, from behind a link if there is one.

    Raises:
        MethodFailed: it does not mount.
    """
    with empty_directory(world.scratch / f"lazyfs-{driver}-{time.monotonic_ns()}") as root:
        told = world.lazyfs(
            "mount", "--json", "--driver", driver, reference, str(root), cache=cache, link=link
        )
        try:
            yield Mounted(root, (int(json.loads(told)["pid"]),))
        finally:
            world.lazyfs("umount", str(root), cache=cache)


@contextmanager
def ratarmount(world: World) -> Iterator[Mounted]:
    """The uncompressed tar mounted by ratarmount, its index made beforehand.

    Raises:
        MethodFailed: it is not installed, or it does not mount.
    """
    command = Path(sys.executable).with_name("ratarmount")
    if not command.exists():
        raise MethodFailed("not installed: pip install ratarmount")
    index = world.tree.home / "ratarmount.sqlite"
    with empty_directory(world.scratch / "ratarmount") as root:
        process = subprocess.Popen(
            [command, "-f", "--index-file", index, world.tree.tar, root],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            _wait_for_mount(root, process)
            yield Mounted(root, (process.pid,))
        finally:
            subprocess.run(["umount", root], check=False, stderr=subprocess.DEVNULL)
            process.send_signal(signal.SIGTERM)
            process.wait()


def _wait_for_mount(root: Path, process: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + _START_S
    while not os.path.ismount(root):
        if process.poll() is not None or time.monotonic() > end:
            raise MethodFailed("it does not mount")
        time.sleep(0.02)
