"""Mounts with other owners, for containers in user namespaces: who asks, what is shown, and for how long."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import trio

from lazyfs.errors import MountError
from lazyfs.mount.requesters import container_namespace
from lazyfs.service.layer_store.shifted import ShiftedMounts
from tests.support.mount_server import file, mounted, write_image
from tests.support.mounts import mounts_below

# A program that forks into a user namespace, as containers/storage does, and says which processes there are.
# Its copy may run another program; a helper may mount in its place.
MOUNTER = """
import ctypes, os, sys

seen, ready = os.pipe()  # closed by whoever runs another program
pid = os.fork()
if pid == 0:
    if "elsewhere" in sys.argv:
        ctypes.CDLL(None).unshare(0x10000000)
    if "other" in sys.argv:
        os.execvp("cat", ["cat"])
    os.write(ready, b"x")
    os.read(0, 1)
    os._exit(0)
os.close(ready)
os.read(seen, 1)
helper = os.fork()
if helper == 0:
    os.execvp("cat", ["cat"])
print(os.getpid(), pid, helper, flush=True)
os.read(0, 1)
"""


class Processes(NamedTuple):
    """Who mounts, the one it has forked, and who mounts in its place."""

    mounter: int
    copy: int
    helper: int


@contextmanager
def mounting(*ways: str, first: int | None = None) -> Iterator[Processes]:
    """A process that mounts. `first`: who user 0 of the namespace of the one that it has forked is."""
    command = [sys.executable, "-c", MOUNTER, *ways]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        found = Processes(*map(int, process.stdout.readline().split()))
        if first is not None:
            for name in ("uid_map", "gid_map"):
                Path(f"/proc/{found.copy}/{name}").write_text(f"0 {first} 65536")
        yield found
        process.stdin.close()  # all of them read it


def test_a_copy_in_another_namespace_tells_where_a_container_is_to_run():
    with mounting("elsewhere") as found:
        assert container_namespace(found.mounter) == found.copy
        assert container_namespace(found.helper) == found.copy


@pytest.mark.parametrize("ways", [[], ["elsewhere", "other"], ["other"]])
def test_no_other_child_does(ways):
    with mounting(*ways) as found:
        assert [container_namespace(pid) for pid in found] == [None] * 3


def gone() -> int:
    """The number of a process that has ended."""
    with subprocess.Popen(["true"]) as process:
        return process.pid


def test_of_who_is_gone_or_not_to_be_seen_nothing_is_known():
    assert [container_namespace(pid) for pid in (0, gone())] == [None, None]


@pytest.fixture
def tree(tmp_path) -> Iterator[Path]:
    image = write_image(tmp_path / "image", [[file(b"f", b"data", uid=3, gid=4)]])
    with mounted(image, tmp_path / "tree") as server:
        yield server.mount_point


async def test_a_mapping_has_one_clone(tree, tmp_path):
    place = tmp_path / "mounts"
    place.mkdir()
    with (
        mounting("elsewhere", first=7000) as one,
        mounting("elsewhere", first=7000) as same,
        mounting("elsewhere", first=9000) as other,
    ):
        async with trio.open_nursery() as nursery:
            shifted = ShiftedMounts(nursery, place)
            paths = [await shifted.shown(tree, found.copy) for found in (one, same, other)]
            assert paths[0] == paths[1]
            assert [(path / "f").stat().st_uid for path in paths] == [7003, 7003, 9003]
            assert (paths[0] / "f").read_bytes() == b"data"
            nursery.cancel_scope.cancel()
    assert mounts_below(place) == [*place.iterdir()] == []


async def test_a_clone_that_nobody_asks_for_goes_and_comes_again(tree, tmp_path):
    place = tmp_path / "mounts"
    place.mkdir()
    with mounting("elsewhere", first=7000) as found:
        async with trio.open_nursery() as nursery:
            shifted = ShiftedMounts(nursery, place, unused_s=0)
            first = await shifted.shown(tree, found.copy)
            with trio.fail_after(30):
                while first in mounts_below(place):
                    await trio.lowlevel.checkpoint()
            assert await shifted.shown(tree, found.copy) != first
            nursery.cancel_scope.cancel()
    assert mounts_below(place) == []


async def test_what_cannot_be_shown_so_is_refused_and_leaves_nothing(tmp_path):
    async with trio.open_nursery() as nursery:
        shifted = ShiftedMounts(nursery, tmp_path)
        with mounting("elsewhere", first=7000) as found, pytest.raises(MountError, match="cannot show /proc"):
            await shifted.shown(Path("/proc"), found.copy)
        with pytest.raises(MountError, match="cannot see the user namespace"):
            await shifted.shown(tmp_path, gone())
    assert [*tmp_path.iterdir()] == []
