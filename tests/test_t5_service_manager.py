"""The data daemon under a service manager that keeps its descriptors: even an upgrade is not noticed."""

import signal
from collections.abc import Iterator

import pytest

from tests.support.lab_registry import docker_registry
from tests.support.mount_server import wait_until
from tests.support.service import Daemon, running_daemon
from tests.support.service_images import ALL_CONTENT, Published, container, content_of, published
from tests.support.service_manager import ServiceManager


@pytest.fixture(scope="module")
def python(lab, tmp_path_factory) -> Iterator[Published]:
    with docker_registry(tmp_path_factory.mktemp("registry")) as address:
        yield published(lab, address, "python", tmp_path_factory.mktemp("publisher"))


@pytest.fixture
def manager(tmp_path) -> Iterator[ServiceManager]:
    with ServiceManager(tmp_path) as manager:
        yield manager


def restart(daemon: Daemon, how: str) -> None:
    if how == "killed":
        daemon.kill()
    else:
        daemon.stop(signal.SIGTERM)
    daemon.start()


@pytest.mark.parametrize("driver", ["erofs", "fuse"])
@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_container_reads_on_while_the_whole_service_is_restarted(
    tmp_path, manager, python, unpacked, driver, how
):
    expected = content_of(unpacked("python"))
    with running_daemon(
        tmp_path / "daemon", flags=["--driver", driver, "--leave"], manager=manager
    ) as daemon:
        mounted = daemon.ask("mount", python.whole)
        with container(mounted.path, ALL_CONTENT) as reader:
            got = reader.stdout.read(1 << 20)
            restart(daemon, how)
            assert [(m["name"], m["state"]) for m in daemon.ask("mounts")] == [(mounted.name, "live")]
            got += reader.stdout.read()
            assert reader.wait() == 0
        assert got == expected
        wait_until(lambda: manager.ready == 2)
        daemon.ask("release", mounted.name)
        wait_until(lambda: not any(daemon.ask("statistics")["in_use"].values()))
        forests = 1 if driver == "erofs" else 0
        wait_until(lambda: len(manager.kept) == 1 + forests)  # the socket, and the forest


def test_without_leave_nothing_is_left_with_the_manager(tmp_path, manager, python):
    with running_daemon(tmp_path / "daemon", manager=manager) as daemon:
        daemon.ask("mount", python.whole)
    wait_until(lambda: list(manager.kept) == ["questions"])
