"""Room, whole: mounts larger than their quota, full disks, pins, collection, removal, read-only caches."""

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.crash import fill_up, small_disk
from tests.support.images import build_image, write_layout
from tests.support.oracle import compare_trees
from tests.support.quick_runner import QuickRunner
from tests.support.tars import directory, file, tar

MIB = 1 << 20
CONTENT = os.urandom(6 * MIB)
NAMES = [f"f{n}" for n in range(12)]


def expected(name: str) -> bytes:
    start = int(name[1:]) * (MIB // 2)
    return CONTENT[start : start + MIB // 2]


def layout_at(path: Path, *, layers: int = 2) -> str:
    each = len(NAMES) // layers
    tars = [
        tar(directory(b"d"), *(file(b"d/" + name.encode(), expected(name)) for name in NAMES[at : at + each]))
        for at in range(0, len(NAMES), each)
    ]
    return f"oci:{write_layout(path, {'latest': build_image(tars)})}"


@pytest.fixture
def quick(tmp_path: Path) -> QuickRunner:
    return QuickRunner(home=tmp_path / "home", cache_dir=tmp_path / "cache")


@pytest.fixture
def image(tmp_path: Path) -> str:
    return layout_at(tmp_path / "layout")


def allocated(root: Path) -> int:
    total = 0
    for path in root.rglob("*"):
        try:
            total += path.lstat().st_blocks * 512
        except FileNotFoundError:
            continue
    return total


@contextmanager
def mounted(lazyfs, image: str, point: Path, *options: str) -> Iterator[Path]:
    point.mkdir(exist_ok=True)
    lazyfs("mount", image, point, *options)
    try:
        yield point
    finally:
        lazyfs("umount", point)


@pytest.mark.parametrize("driver", ["erofs", "fuse"])
def test_live_mounts_read_more_than_the_quota_and_every_byte_is_right(driver, quick, image, tmp_path) -> None:
    quota = 3 * MIB
    options = ("--driver", driver, "--cache-quota-mib", "3")
    most = 0
    over = threading.Event()

    def watch() -> None:
        nonlocal most
        while not over.wait(0.01):
            most = max(most, allocated(quick.cache_dir / "layers"))

    with mounted(quick, image, tmp_path / "a", *options) as one:
        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            for name in NAMES:
                assert (one / "d" / name).read_bytes() == expected(name)
            with mounted(quick, image, tmp_path / "b", *options) as two:
                for name in [*reversed(NAMES), *NAMES[::5]]:
                    assert (two / "d" / name).read_bytes() == expected(name)
                assert compare_trees(one, two) == []
        finally:
            over.set()
            watcher.join()
    # What the cache takes may be measured while each mount is about to write a span that it was granted.
    slice_, span = 64 << 10, 384 << 10
    assert MIB < most <= quota + 2 * (slice_ + span)


def caches(quick: QuickRunner, disk: Path, image: str, *, warm: bool) -> QuickRunner:
    """The command line with a cache on a disk; one that was used before, or that only exists."""
    runner = QuickRunner(home=quick.home, cache_dir=disk / "cache")
    if warm:
        runner("cat", image, "/d/f0")
    else:
        runner("cache", "usage")
    return runner


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("leave_kib", [0, 4, 8, 16, 28, 48, 100, 300, 1500])
def test_whichever_write_meets_a_full_disk_the_bytes_are_right(
    warm, leave_kib, quick, image, tmp_path
) -> None:
    with small_disk(tmp_path / "disk", 24 * MIB, "tmpfs") as disk:
        runner = caches(quick, disk, image, warm=warm)
        fill_up(disk / "ballast", leave_kib << 10)
        environment = {"LAZYFS_FREE_FLOOR_MIB": "0"}
        said = runner("cp", "-a", image, "/d", tmp_path / "out", env=environment)
        assert "Traceback" not in said.stderr
        assert {
            name: (tmp_path / "out" / name).read_bytes() == expected(name) for name in NAMES
        } == dict.fromkeys(NAMES, True)


@pytest.mark.parametrize("inodes", [0, 1, 2, 3, 5, 8, 12, 20])
def test_whichever_file_cannot_be_made_the_bytes_are_right(inodes, quick, image, tmp_path) -> None:
    with small_disk(tmp_path / "disk", 24 * MIB, "tmpfs") as disk:
        runner = caches(quick, disk, image, warm=False)
        used = os.statvfs(disk).f_files - os.statvfs(disk).f_ffree
        subprocess.run(["mount", "-o", f"remount,nr_inodes={used + inodes}", disk], check=True)
        runner("cp", "-a", image, "/d", tmp_path / "out")
        assert all((tmp_path / "out" / name).read_bytes() == expected(name) for name in NAMES)


@pytest.mark.parametrize("driver", ["erofs", "fuse"])
@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_mount_outlives_a_disk_that_fills_up(driver, kind, quick, image, tmp_path) -> None:
    with small_disk(tmp_path / "disk", 24 * MIB, kind) as disk:
        runner = caches(quick, disk, image, warm=False)
        fill_up(disk / "ballast", 64 << 10)
        with mounted(runner, image, tmp_path / "mnt", "--driver", driver) as point:
            for name in NAMES[:6]:
                assert (point / "d" / name).read_bytes() == expected(name)
            (disk / "ballast").unlink()
            for name in NAMES[6:9]:
                assert (point / "d" / name).read_bytes() == expected(name)
            fill_up(disk / "ballast")
            for name in NAMES[9:]:
                assert (point / "d" / name).read_bytes() == expected(name)


def test_pins_survive_and_are_kept(quick, image, tmp_path) -> None:
    other = layout_at(tmp_path / "other", layers=3)
    quick("cache", "pin", "--fetch", image)
    (pinned,) = json.loads(quick("cache", "images", "--json").stdout)
    assert pinned["pinned"]
    assert pinned["present"] == pinned["leaves"]
    quick("cp", "-a", other, "/d", tmp_path / "out", "--cache-quota-mib", "7")
    quick("cache", "gc", "--cache-quota-mib", "1")
    by_name = {fact["name"]: fact for fact in json.loads(quick("cache", "images", "--json").stdout)}
    assert by_name[pinned["name"]]["present"] == pinned["leaves"]
    assert by_name[other]["present"] < by_name[other]["leaves"]
    assert "pinned" in quick("cache", "images").stdout
    assert "pinned" in quick("cache", "rm", image, exit_code=74).stderr
    quick("cache", "rm", "--all")
    assert [fact["name"] for fact in json.loads(quick("cache", "images", "--json").stdout)] == [image]
    quick("cache", "unpin", image)
    quick("cache", "gc", "--cache-quota-mib", "1")
    assert json.loads(quick("cache", "usage", "--json").stdout)["total"] <= MIB


def test_an_image_is_removed_with_what_is_its_own_alone(quick, tmp_path) -> None:
    base = tar(directory(b"d"), file(b"d/f0", expected("f0")))
    one = write_layout(tmp_path / "one", {"latest": build_image([base, tar(file(b"one", CONTENT[:MIB]))])})
    two = write_layout(tmp_path / "two", {"latest": build_image([base, tar(file(b"two", CONTENT[:MIB]))])})
    for layout in (one, two):
        quick("cat", f"oci:{layout}", "/d/f0")
    assert len(json.loads(quick("cache", "ls", "--json").stdout)) == 3
    before = json.loads(quick("cache", "usage", "--json").stdout)["kinds"]
    freed = json.loads(quick("cache", "rm", "--json", f"oci:{one}").stdout)["freed_bytes"]
    assert freed > MIB
    after = json.loads(quick("cache", "usage", "--json").stdout)["kinds"]
    assert len(json.loads(quick("cache", "ls", "--json").stdout)) == 2
    for kind in ("layers", "tocs", "images", "documents", "catalogue"):
        assert 0 < after[kind] < before[kind]
    assert quick("cat", f"oci:{two}", "/d/f0", "--offline").stdout.encode(
        "utf-8", "surrogateescape"
    ) == expected("f0")
    quick("cache", "rm", "--all")
    left = json.loads(quick("cache", "usage", "--json").stdout)["kinds"]
    assert {kind for kind, size in left.items() if size} <= {"quarantine"}
    assert quick("cache", "rm", f"oci:{one}", exit_code=66).stderr
    assert quick("cache", "rm", exit_code=64).stderr


def test_a_relative_name_means_the_layout_below_the_working_directory(quick, tmp_path, monkeypatch) -> None:
    tops = [tmp_path / "a", tmp_path / "b"]
    for top in tops:
        top.mkdir()
        layout_at(top / "img")
        monkeypatch.chdir(top)
        quick("cache", "pin", "oci:./img")

    def pinned() -> dict[str, bool]:
        return {
            fact["name"]: fact["pinned"] for fact in json.loads(quick("cache", "images", "--json").stdout)
        }

    first, second = (f"oci:{top}/img" for top in tops)
    assert pinned() == {first: True, second: True}
    monkeypatch.chdir(tops[0])
    quick("cache", "unpin", "oci:img")
    assert pinned() == {first: False, second: True}
    quick("cache", "rm", "oci:./img")
    assert pinned() == {second: True}


def test_what_was_mounted_by_a_relative_name_is_removed_by_it(quick, image, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with mounted(quick, "oci:./layout", tmp_path / "mnt"):
        pass
    quick("cache", "rm", "oci:./layout")
    assert json.loads(quick("cache", "images", "--json").stdout) == []


def test_what_a_live_mount_uses_can_be_removed_and_comes_again(quick, image, tmp_path) -> None:
    with mounted(quick, image, tmp_path / "mnt") as point:
        assert (point / "d/f0").read_bytes() == expected("f0")
        assert all(fact["in_use"] for fact in json.loads(quick("cache", "ls", "--json").stdout))
        quick("cache", "rm", "--all")
        assert sum(fact["present"] for fact in json.loads(quick("cache", "ls", "--json").stdout)) == 0
        assert allocated(quick.cache_dir / "layers") < 256 << 10
        for name in NAMES:
            assert (point / "d" / name).read_bytes() == expected(name)


def test_collecting_drops_what_nobody_refers_to(quick, image, tmp_path) -> None:
    quick("cat", image, "/d/f0")
    for record in (quick.cache_dir / "catalogue").iterdir():
        record.unlink()
    planned = json.loads(quick("cache", "gc", "--dry-run", "--now", "--json").stdout)
    assert {item["kind"] for item in planned["garbage"]} >= {"layers", "tocs", "images", "documents"}
    assert json.loads(quick("cache", "gc", "--json").stdout)["garbage"] == []
    quick("cache", "gc", "--dry-run", "--now")
    before = json.loads(quick("cache", "usage", "--json").stdout)["total"]
    done = json.loads(quick("cache", "gc", "--now", "--json").stdout)
    assert done["freed_bytes"] == planned["freed_bytes"] > 0
    after = json.loads(quick("cache", "usage", "--json").stdout)["total"]
    assert before - after == done["freed_bytes"]
    assert quick("cat", image, "/d/f1").stdout.encode("utf-8", "surrogateescape") == expected("f1")
    assert json.loads(quick("cache", "gc", "--now", "--json").stdout)["garbage"] == []


@pytest.mark.parametrize("driver", ["erofs", "fuse"])
def test_a_warm_cache_on_a_read_only_disk_serves_mounts(driver, quick, image, tmp_path) -> None:
    quick("cache", "pin", "--fetch", image)
    place = tmp_path / "read-only"
    place.mkdir()
    subprocess.run(["mount", "--bind", quick.cache_dir, place], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)
        runner = QuickRunner(home=quick.home, cache_dir=place)
        with mounted(runner, image, tmp_path / "mnt", "--driver", driver) as point:
            for name in NAMES:
                assert (point / "d" / name).read_bytes() == expected(name)
        assert runner("cache", "verify").stdout
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)
