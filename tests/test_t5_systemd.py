"""The units of deploy/systemd under the real systemd, as PID 1 of a namespace."""

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import grpc
import pytest
import trio

from lazyfs.service.client import ServiceClient
from tests.support.lab_registry import docker_registry
from tests.support.mount_server import wait_until
from tests.support.runner import executable
from tests.support.service import PATIENCE_S
from tests.support.service_images import ALL_CONTENT, Published, container, content_of, published
from tests.support.snapshot_client import SnapshotClient
from tests.support.systemd import Systemd, running_systemd

UNITS = Path(__file__).parents[1] / "deploy/systemd"
DAEMON, SNAPSHOTTER = "lazyfs-daemon.service", "lazyfs-snapshotter.service"


@pytest.fixture(scope="module")
def python(lab, tmp_path_factory) -> Iterator[Published]:
    with docker_registry(tmp_path_factory.mktemp("registry")) as address:
        yield published(lab, address, "python", tmp_path_factory.mktemp("publisher"))


@pytest.fixture
def systemd(tmp_path) -> Iterator[Systemd]:
    units = {
        name: (UNITS / name).read_text().replace("/usr/bin/lazyfs", executable())
        for name in (DAEMON, SNAPSHOTTER)
    }
    units = {name: unit.replace("WatchdogSec=60", "WatchdogSec=5") for name, unit in units.items()}
    with running_systemd(tmp_path / "systemd", units) as systemd:
        yield systemd
    shutil.rmtree(tmp_path / "systemd")


def ask(systemd, method, *arguments):
    client = ServiceClient(systemd.path("/run/lazyfs/daemon.sock"), PATIENCE_S)
    return trio.run(partial(getattr(client, method), *arguments))


def kept(systemd):
    """How many descriptors systemd keeps for the daemon."""
    return int(systemd.facts(DAEMON)["NFileDescriptorStore"])


def end_somehow(systemd, how):
    if how == "restarted":
        systemd.ctl("restart", DAEMON)
    elif how == "killed":
        systemd.ctl("kill", "--signal=KILL", DAEMON)
    else:
        systemd.ctl("kill", "--signal=STOP", DAEMON)


@pytest.mark.parametrize("how", ["killed", "restarted", "hung"])
def test_a_container_reads_on_whatever_becomes_of_the_daemon(systemd, python, unpacked, how):
    expected = content_of(unpacked("python"))
    systemd.ctl("start", DAEMON)
    before = systemd.processes(DAEMON)
    mounted = ask(systemd, "mount", python.whole)
    with container(mounted.path, ALL_CONTENT, systemd.within) as reader:
        got = reader.stdout.read(1 << 20)
        assert kept(systemd) >= 2  # the socket, and the connection to the kernel
        end_somehow(systemd, how)
        wait_until(lambda: len(before | systemd.processes(DAEMON)) == 4)
        got += reader.stdout.read()
        assert reader.wait() == 0
    assert got == expected
    assert [(m["name"], m["state"]) for m in ask(systemd, "mounts")] == [(mounted.name, "live")]
    assert len(before) == 2
    assert "Operation not permitted" not in systemd.said()


@pytest.mark.parametrize("how", ["killed", "restarted"])
def test_what_pulls_told_outlives_the_daemon_but_not_its_stop(systemd, how):
    entry = {"username": "node", "password": "s3cret"}
    tell = partial(ask, systemd, "log_in", "registry.example/app:1", entry)
    systemd.ctl("start", DAEMON)
    assert [tell(), tell()] == [True, False]
    before = systemd.processes(DAEMON)
    end_somehow(systemd, how)
    wait_until(lambda: len(before | systemd.processes(DAEMON)) == 4)
    assert not tell()
    systemd.ctl("stop", DAEMON)
    systemd.ctl("start", DAEMON)
    assert tell()
    assert "s3cret" not in systemd.said()


def test_both_services_are_ready_when_systemd_says_so_and_stop(systemd, python):
    systemd.ctl("start", SNAPSHOTTER)  # wants the daemon
    assert ask(systemd, "statistics")["pid"]
    with grpc.insecure_channel(f"unix:{systemd.path('/run/lazyfs/snapshotter.sock')}") as channel:
        client = SnapshotClient(channel)
        client.prepare("first")
        before = systemd.processes(SNAPSHOTTER)
        systemd.ctl("kill", "--signal=STOP", SNAPSHOTTER)
        wait_until(lambda: len(before | systemd.processes(SNAPSHOTTER)) == 2)
        mounts = client.mounts("first")
        assert [mount.type for mount in mounts] == ["bind"]
        ask(systemd, "mount", python.whole)
        systemd.ctl("stop", SNAPSHOTTER, DAEMON)
        for unit in (SNAPSHOTTER, DAEMON):
            facts = systemd.facts(unit)
            assert (facts["ActiveState"], facts["Result"]) == ("inactive", "success"), systemd.said()
            assert facts["NFileDescriptorStore"] == "0"
            assert systemd.processes(unit) == set()
        systemd.ctl("start", DAEMON)
        wait_until(lambda: [mount["state"] for mount in ask(systemd, "mounts")] == ["remade"])
        systemd.ctl("start", SNAPSHOTTER)
        wait_until(lambda: ask(systemd, "mounts") == [])  # it is of no snapshot
        assert client.stat("first").name == "first"
    assert "Operation not permitted" not in systemd.said()
