"""The data daemon killed in the midst of what it is asked: that is done at last, and nothing else is left."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lazyfs.oci.chain import ChainOrder
from tests.support import daemon_kill_steps
from tests.support.images import build_image
from tests.support.mount_server import wait_until
from tests.support.mounts import mounts_below, unmount_lazily
from tests.support.published import index_of, put
from tests.support.registry import Registry
from tests.support.service import Daemon, running_daemon
from tests.support.tars import file, tar

CONTENT = b"base\n" * 50_000
MANY = 5000
NOTES = ["note:before", "note:after"]
UNMOUNTS = ["unmount:before", "unmount:after"]
MOUNTS = {
    "fuse": ["connect:before", "connect:after", "attach:before", "attach:after"],
    "erofs": ["mount:before", "mount:after"],
}


@pytest.fixture
def orders() -> Iterator[list[ChainOrder]]:
    """Three images over one layer; one has many files."""
    base = tar(file(b"base", CONTENT))
    own = [[file(b"own", b"0\n")], [file(b"own", b"1\n")], [file(b"%d" % n, b"x") for n in range(MANY)]]
    with Registry() as registry:
        orders = []
        for number, files in enumerate(own):
            image = build_image([base, tar(*files)])
            registry.push(f"app{number}", image)
            put(registry, f"app{number}", index_of(image))
            layer = image.json["layers"][1]["digest"]
            orders.append(ChainOrder(f"{registry.host}/app{number}", image.digest, 2, layer, ""))
        yield orders


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the daemon is told to die."""
    place = tmp_path / "steps"
    place.mkdir()
    for name, value in daemon_kill_steps.prepared(place).items():
        monkeypatch.setenv(name, value)
    return place


@pytest.fixture(params=["erofs", "fuse"])
def daemon(request: pytest.FixtureRequest, steps: Path, tmp_path: Path) -> Iterator[Daemon]:
    assert steps.is_dir()
    with running_daemon(tmp_path / "daemon", flags=["--driver", request.param]) as daemon:
        yield daemon


def test_it_dies_around_each_step_of_a_mount(daemon: Daemon, orders: list[ChainOrder], steps: Path) -> None:
    old = daemon.ask("mount", orders[0])
    with (old.path / "base").open("rb") as reader:
        with daemon_kill_steps.deaths(steps) as died:
            new = daemon.ask("mount", orders[1])
        assert sorted(died) == sorted(NOTES + MOUNTS[old.driver])
        check(daemon, {old.name: 0, new.name: 1})
        assert reader.read() == CONTENT


def test_it_dies_around_each_step_of_a_release(daemon: Daemon, orders: list[ChainOrder], steps: Path) -> None:
    old, new = (daemon.ask("mount", order) for order in orders[:2])
    with (old.path / "base").open("rb") as reader:
        with daemon_kill_steps.deaths(steps) as died:
            daemon.ask("keep", [old.name])
        # What was unmounted, and not yet noted so, the next daemon mounts first.
        assert set(NOTES + UNMOUNTS) <= set(died) <= set(NOTES + UNMOUNTS + MOUNTS[old.driver])
        check(daemon, {old.name: 0})
        assert reader.read() == CONTENT
        assert not new.path.exists()
    daemon.ask("release", old.name)
    check(daemon, {})


def test_it_dies_around_each_step_of_a_restart(daemon: Daemon, orders: list[ChainOrder], steps: Path) -> None:
    old = daemon.ask("mount", orders[0])
    daemon.kill()
    with daemon_kill_steps.deaths(steps) as died:
        daemon.start()
        wait_until(lambda: {mount["state"] for mount in daemon.ask("mounts")} <= {"remade", "live"})
    assert set(NOTES + MOUNTS[old.driver]) <= set(died)
    assert [mount["name"] for mount in daemon.ask("mounts")] == [old.name]
    assert (old.path / "base").read_bytes() == CONTENT


def test_it_dies_when_it_has_mounted_a_tree_whose_metadata_it_serves_itself(
    orders: list[ChainOrder], steps: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "memory"
    cache.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", cache], check=True)
    try:
        with running_daemon(tmp_path / "daemon", cache / "cache", ["--driver", "erofs"]) as daemon:
            with daemon_kill_steps.deaths(steps) as died:
                new = daemon.ask("mount", orders[2])
            assert set(MOUNTS["erofs"]) <= set(died)
            assert sum(path.stat().st_size for path in new.path.iterdir()) == len(CONTENT) + MANY
    finally:
        unmount_lazily(cache)


def check(daemon: Daemon, expected: dict[str, int]) -> None:
    """These mounts are there, in the kernel, on disk, and with the daemon; each shows its own image."""
    states = {mount["name"]: mount["state"] for mount in daemon.ask("mounts")}
    assert states == dict.fromkeys(expected, "live")
    folder = daemon.root / "mounts"
    assert {point.name for point in mounts_below(folder)} == set(expected)
    assert {path.name for path in folder.iterdir()} == set(expected)
    noted = json.loads((daemon.root / "mounts.json").read_bytes())["mounts"]
    assert {entry["name"] for entry in noted} == set(expected)
    for name, number in expected.items():
        assert (folder / name / "own").read_bytes() == b"%d\n" % number
        assert (folder / name / "base").read_bytes() == CONTENT
