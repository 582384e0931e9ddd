"""The whole of it on real images from a real registry: the mounted tree is what umoci unpacks."""

import json
import os
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.lab import image_names
from tests.support.mount_server import wait_until
from tests.support.mounts import mounts_below
from tests.support.oracle import compare_trees

DRIVERS = ["fuse", "erofs"]


@pytest.fixture
def mount_point(tmp_path: Path) -> Path:
    point = tmp_path / "mnt"
    point.mkdir()
    return point


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("name", image_names())
def test_the_mounted_tree_is_what_umoci_unpacks(name, driver, lazyfs, registry, unpacked, mount_point):
    lazyfs("mount", "--driver", driver, registry.reference(name), mount_point)
    try:
        assert compare_trees(unpacked(name), mount_point) == []
    finally:
        lazyfs("umount", mount_point)


def _stats(lazyfs, mount_point: Path) -> dict:
    return json.loads(lazyfs("stats", mount_point, "--json").stdout)


def _indexed_elsewhere(lazyfs, reference: str) -> None:
    """Leave what an index is in the cache, and no content."""
    lazyfs("index", reference)
    for kind in ("layers", "images", "documents", "references"):
        subprocess.run(["rm", "-rf", lazyfs.cache_dir / kind], check=True)


def test_with_an_index_one_small_file_costs_little_and_a_second_read_nothing(lazyfs, registry, mount_point):
    reference = registry.reference("postgres")
    _indexed_elsewhere(lazyfs, reference)
    lazyfs("mount", reference, mount_point)
    try:
        path = mount_point / "etc/passwd"
        content = path.read_bytes()
        assert content.startswith(b"root:")
        first = _stats(lazyfs, mount_point)
        assert first["requests"] <= 4
        assert first["bytes"] <= 2 << 20
        path.read_bytes()
        os.posix_fadvise(fd := os.open(path, os.O_RDONLY), 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
        assert path.read_bytes() == content
        assert _stats(lazyfs, mount_point)["bytes"] == first["bytes"]
    finally:
        lazyfs("umount", mount_point)
    lazyfs("mount", reference, mount_point)
    try:
        path.read_bytes()
        again = _stats(lazyfs, mount_point)
        assert again["requests"] <= 1
        assert again["source"]["data_requests"] == 0
    finally:
        lazyfs("umount", mount_point)


def test_without_an_index_reading_everything_moves_each_blob_once(lazyfs, registry, mount_point):
    reference = registry.reference("nginx")
    lazyfs("mount", reference, mount_point)
    try:
        subprocess.run(["tar", "-cf", "/dev/null", "-C", mount_point, "."], check=True)
        stats = _stats(lazyfs, mount_point)
        config_size = json.loads(lazyfs("inspect", reference, "--json").stdout)["manifest"]["config"]["size"]
        assert stats["source"]["data_bytes"] == stats["image_bytes"] + config_size
    finally:
        lazyfs("umount", mount_point)


def test_a_program_runs_from_the_mount(lazyfs, registry, mount_point):
    lazyfs("mount", registry.reference("python"), mount_point)
    try:
        done = subprocess.run(
            ["chroot", mount_point, "/usr/bin/python3", "-c", "import json, ssl; print(json.dumps(6 * 7))"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == "42\n"
    finally:
        lazyfs("umount", mount_point)


def test_a_complete_image_mounts_with_the_registry_down(lazyfs, lab, mount_point):
    from tests.support.lab import serve

    with serve(lab) as running:
        reference = running.reference("base")
        lazyfs("index", reference)
    done = lazyfs("mount", reference, mount_point)
    try:
        assert "going on" in done.stderr
        assert (mount_point / "etc/passwd").read_bytes().startswith(b"root:")
    finally:
        lazyfs("umount", mount_point)
    quiet = lazyfs("mount", "--offline", reference, mount_point)
    try:
        assert quiet.stderr == ""
        assert (mount_point / "etc/passwd").exists()
    finally:
        lazyfs("umount", mount_point)


def test_umount_leaves_nothing_behind(lazyfs, registry, mount_point):
    lazyfs("mount", registry.reference("base"), mount_point)
    pid = _stats(lazyfs, mount_point)["pid"]
    lazyfs("umount", mount_point)
    command = Path(f"/proc/{pid}/cmdline")
    assert not command.exists() or not command.read_bytes()  # at most a zombie that init has not taken yet
    assert str(mount_point) not in Path("/proc/self/mountinfo").read_text()
    assert str(mount_point) not in lazyfs("stats", "--json").stdout
    lazyfs("umount", mount_point, exit_code=66)


def test_several_are_unmounted_in_one_call_whatever_becomes_of_one(lazyfs, lab_image, tmp_path):
    points = [tmp_path / name for name in ("one", "two", "three")]
    for point in points:
        point.mkdir()
        lazyfs("mount", f"oci:{lab_image('base')}", point)
    done = lazyfs("umount", tmp_path, points[0], exit_code=66)
    assert done.stderr == f"lazyfs: nothing is mounted at {tmp_path}\n"
    assert mounts_below(tmp_path) == points[:0:-1]
    lazyfs("umount", "--all")
    assert mounts_below(tmp_path) == []
    lazyfs("umount", exit_code=64)
    lazyfs("umount", "--all", points[0], exit_code=64)


def _connections(pid: int, port: int) -> int:
    """How many connections to a port of this machine a process has."""
    sockets = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            sockets.add(str(descriptor.readlink()))
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    established = [line for line in lines if line[3] == "01" and int(line[2].rpartition(":")[2], 16) == port]
    return sum(f"socket:[{line[9]}]" in sockets for line in established)


def _mounted_by(lazyfs, *arguments: object, **options: object) -> int:
    """The process that answers for a new mount."""
    return json.loads(lazyfs("mount", "--json", *arguments, **options).stdout)["pid"]


def test_a_connection_is_open_before_the_first_read(lazyfs, registry, mount_point):
    """The index is here, the content is not. Where all is here the tag is looked up, and nothing more."""
    reference = registry.reference("nginx")
    port = int(registry.address.rpartition(":")[2])
    lazyfs("index", reference)
    pid = _mounted_by(lazyfs, reference, mount_point)
    assert _connections(pid, port) == 1
    lazyfs("umount", mount_point)
    subprocess.run(["rm", "-rf", lazyfs.cache_dir / "layers"], check=True)
    pid = _mounted_by(lazyfs, reference, mount_point)
    wait_until(lambda: _connections(pid, port) == 2)
    lazyfs("umount", mount_point)
    pid = _mounted_by(lazyfs, "--offline", reference, mount_point)
    assert _connections(pid, port) == 0
    lazyfs("umount", mount_point)


def test_libfuse_answers_only_where_it_is_asked_for(lazyfs, registry, unpacked, mount_point):
    reference = registry.reference("nginx")
    for session in ("own", "pyfuse3"):
        environment = {"LAZYFS_FUSE_SESSION": session}
        pid = _mounted_by(lazyfs, "--driver", "erofs", reference, mount_point, env=environment)
        try:
            assert ("libfuse3" in Path(f"/proc/{pid}/maps").read_text()) == (session == "pyfuse3")
            assert compare_trees(unpacked("nginx"), mount_point) == []
        finally:
            lazyfs("umount", mount_point)
