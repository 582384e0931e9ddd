"""A data daemon that hangs is as good as one that was killed."""

import os
import signal
from collections.abc import Iterator

import pytest

from tests.support.lab_registry import docker_registry
from tests.support.mount_server import wait_until
from tests.support.service import running_daemon
from tests.support.service_images import ALL_CONTENT, Published, container, content_of, published


@pytest.fixture(scope="module")
def python(lab, tmp_path_factory) -> Iterator[Published]:
    with docker_registry(tmp_path_factory.mktemp("registry")) as address:
        yield published(lab, address, "python", tmp_path_factory.mktemp("publisher"))


@pytest.mark.parametrize("driver", ["erofs", "fuse"])
def test_a_container_reads_on_when_the_process_that_serves_it_hangs(tmp_path, python, unpacked, driver):
    expected = content_of(unpacked("python"))
    flags = ["--driver", driver, "--hung-after", "2"]
    with running_daemon(tmp_path / "daemon", flags=flags) as daemon:
        mounted = daemon.ask("mount", python.whole)
        with container(mounted.path, ALL_CONTENT) as reader:
            got = reader.stdout.read(1 << 20)
            hung = daemon.worker
            os.kill(hung, signal.SIGSTOP)
            got += reader.stdout.read()
            assert reader.wait() == 0
        assert got == expected
        assert daemon.worker != hung
        assert "gave no sign of life for 2 s" in daemon.log_text()
        daemon.ask("release", mounted.name)


def test_both_processes_may_be_frozen_together(tmp_path):
    """As by a control group's freezer: what counts is whether the one hears the other, not the clock."""
    with running_daemon(tmp_path / "daemon", flags=["--driver", "fuse", "--hung-after", "1"]) as daemon:
        worker, keeper = daemon.worker, daemon.keeper.pid
        os.kill(keeper, signal.SIGSTOP)
        os.kill(worker, signal.SIGSTOP)
        since = os.times().elapsed
        wait_until(lambda: os.times().elapsed > since + 3)
        os.kill(keeper, signal.SIGCONT)
        os.kill(worker, signal.SIGCONT)
        assert daemon.worker == worker
        assert "sign of life" not in daemon.log_text()
