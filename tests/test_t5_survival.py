"""Kills and full disks: what goes on, what ends, and that nothing is left behind."""

import json
import os
import select
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.images import build_image, write_layout
from tests.support.mount_server import wait_until
from tests.support.oracle import compare_trees
from tests.support.runner import executable
from tests.support.tars import directory, file, tar

CONTENT = os.urandom(300_000)
PATIENCE_S = 60.0


@pytest.fixture
def image(tmp_path: Path) -> str:
    layers = [
        tar(directory(b"d"), *(file(b"d/f%d" % n, CONTENT[n * 1000 : (n + 1) * 1000]) for n in range(100))),
        tar(file(b"big", CONTENT)),
    ]
    return f"oci:{write_layout(tmp_path / 'layout', {'latest': build_image(layers)})}"


@pytest.fixture
def point(tmp_path: Path) -> Path:
    path = tmp_path / "mnt"
    path.mkdir()
    return path


def _pid(lazyfs, point: Path) -> int:
    return json.loads(lazyfs("stats", point, "--json").stdout)["pid"]


def _has_ended(pid: int) -> bool:
    """Gone, or a zombie that init has not taken yet."""
    try:
        return not Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return True


def _wait_until_ended(pid: int) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:  # and init was quick to take it
        return
    try:
        assert select.select([descriptor], [], [], PATIENCE_S)[0]
    finally:
        os.close(descriptor)


def _loop_devices() -> set[tuple[str, str]]:
    """Those in use, and a number that each use of one has for itself."""
    found = set()
    for place in Path("/sys/block").glob("loop*/loop"):
        with suppress(OSError):
            found.add((place.parent.name, (place.parent / "diskseq").read_text()))
    return found


def _known(lazyfs, point: Path) -> bool:
    """Whether lazyfs thinks that something is mounted there."""
    return str(point) in lazyfs("stats", "--json").stdout


def _mounted(point: Path) -> bool:
    return str(point) in Path("/proc/self/mountinfo").read_text()


@pytest.mark.parametrize("driver", ["erofs", "fuse"])
def test_a_killed_daemon_leaves_a_mount_that_umount_cleans_up(driver, lazyfs, image, point):
    lazyfs("mount", "--driver", driver, image, point)
    names = sorted(path.name for path in (point / "d").iterdir())
    cached = (point / "big").read_bytes()
    pid = _pid(lazyfs, point)
    os.kill(pid, signal.SIGKILL)
    _wait_until_ended(pid)
    if driver == "erofs":
        assert sorted(path.name for path in (point / "d").iterdir()) == names
        assert (point / "big").read_bytes() == cached == CONTENT
        with pytest.raises(OSError, match="Input/output error"):
            (point / "d/f7").read_bytes()
    else:
        with pytest.raises(OSError, match="not connected"):
            (point / "d/f7").read_bytes()
    lazyfs("umount", point)
    assert not _mounted(point)
    assert list((lazyfs.home / "run").iterdir()) == []  # the log was empty
    lazyfs("mount", "--driver", driver, image, point)
    assert (point / "d/f7").read_bytes() == CONTENT[7000:8000]
    lazyfs("umount", point)


@pytest.mark.parametrize("driver", ["erofs", "fuse"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_unmounts_and_leaves_nothing_behind(driver, number, lazyfs, image, point):
    before = _loop_devices()
    lazyfs("mount", "--driver", driver, image, point)
    pid = _pid(lazyfs, point)
    os.kill(pid, number)
    _wait_until_ended(pid)
    assert not _mounted(point)
    left = _loop_devices() - before
    wait_until(lambda: not left & _loop_devices())  # what a test beside this one has goes too
    assert not _known(lazyfs, point)


@pytest.mark.parametrize("driver", ["erofs", "fuse"])
def test_unmounting_by_other_means_ends_the_daemon(driver, lazyfs, image, point):
    lazyfs("mount", "--driver", driver, image, point)
    pid = _pid(lazyfs, point)
    subprocess.run(["umount", point], check=True)
    _wait_until_ended(pid)
    assert not _known(lazyfs, point)


def test_foreground_ends_with_an_interrupt(lazyfs, image, point):
    with subprocess.Popen(
        [
            executable(),
            "mount",
            "--foreground",
            "--json",
            image,
            str(point),
            "--cache-dir",
            str(lazyfs.cache_dir),
        ],
        stdout=subprocess.PIPE,
        env=lazyfs.environment(),
    ) as mount:
        assert mount.stdout is not None
        while mount.stdout.readline().strip() != b"}":
            pass
        assert (point / "big").read_bytes() == CONTENT
        mount.send_signal(signal.SIGINT)
        mount.wait(timeout=PATIENCE_S)
    assert not _mounted(point)


def test_two_mounts_of_one_image_share_what_was_fetched(lazyfs, image, point, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    lazyfs("mount", image, point)
    lazyfs("mount", image, other)
    assert compare_trees(point, other) == []
    lazyfs("umount", point)
    lazyfs("umount", other)
    assert len(json.loads(lazyfs("cache", "ls", "--json").stdout)) == 2


@pytest.mark.parametrize("driver", ["erofs", "fuse"])
def test_128_layers_mount(driver, lazyfs, tmp_path, point):
    layers = [tar(file(b"f%d" % n, b"%d" % n), file(b"last", b"%d" % n)) for n in range(128)]
    layout = write_layout(tmp_path / "many", {"latest": build_image(layers)})
    lazyfs("mount", "--driver", driver, f"oci:{layout}", point)
    assert (point / "last").read_bytes() == b"127"
    assert [(point / f"f{n}").read_bytes() for n in range(128)] == [b"%d" % n for n in range(128)]
    lazyfs("umount", point)


def test_a_full_disk_stops_the_cache_and_not_the_readers(lazyfs, image, point, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", small], check=True)
    try:
        environment = {"LAZYFS_CACHE_DIR": str(small / "cache"), "LAZYFS_FREE_FLOOR_MIB": "0"}
        mount = [executable(), "mount", image, str(point)]
        subprocess.run(mount, check=True, env=lazyfs.environment() | environment)
        assert (point / "big").read_bytes() == CONTENT
        assert (point / "d/f7").read_bytes() == CONTENT[7000:8000]
        subprocess.run([executable(), "umount", str(point)], check=True, env=lazyfs.environment())
    finally:
        subprocess.run(["umount", "-l", small], check=True)
