"""Each of containerd, snapshotter and daemon killed, between any two calls and in the midst of them."""

import random
import signal
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from threading import Event, Thread
from typing import TypeVar

import grpc
import pytest

from tests.support.containerd_images import indexed_and_plain
from tests.support.containerd_left import give_back, nothing_is_left
from tests.support.containerd_node import PROGRAMS, Node, node
from tests.support.containerd_release import release
from tests.support.lab import Lab
from tests.support.registry import Registry
from tests.support.runner import LazyfsRunner

T = TypeVar("T")

ADD = "import sys; print(sum(map(int, sys.argv[1:])))"
SLEEP = ["/bin/sleep", "infinity"]
PATIENCE_S = 120


@pytest.fixture
def registry(lab: Lab, publisher: LazyfsRunner) -> Iterator[Registry]:
    with indexed_and_plain(lab, publisher) as registry:
        yield registry


@pytest.fixture(params=["1.6", "2.1"])
def machine(request, lab: Lab, registry: Registry, tmp_path: Path) -> Iterator[Node]:
    containerd = release(lab, request.param)
    with node(tmp_path / "n", containerd, registry.host, f"{registry.host}/pause:1") as machine:
        yield machine


@pytest.mark.parametrize("program", ["worker", "snapshotter", "containerd"])
def test_kills_between_any_two_calls(program: str, machine: Node, registry: Registry) -> None:
    image = f"{registry.host}/indexed:latest"
    cri = machine.cri

    def killed(call: Callable[..., T], *arguments: object) -> T:
        machine.restart(program)
        machine.wait_until_ready()
        return call(*arguments)

    killed(cri.pull, image)
    pod = killed(cri.run_pod)
    container = killed(cri.create, pod, image, SLEEP)
    killed(cri.start, container)
    assert killed(cri.execute, container, "python3", "-c", ADD, "1", "2") == "3\n"
    assert killed(cri.execute, container, "sh", "-c", "echo kept > /kept; cat /etc/debian_version") != ""
    assert killed(cri.execute, container, "cat", "/kept") == "kept\n"
    other = killed(cri.create, pod, image, SLEEP, "other")
    killed(cri.remove, other)
    killed(cri.remove, container)
    killed(cri.remove_pod, pod)
    killed(cri.remove_image, image)
    cri.remove_image(f"{registry.host}/pause:1")
    nothing_is_left(machine)


def test_the_daemon_killed_with_its_keeper_costs_the_containers_that_run(
    machine: Node, registry: Registry
) -> None:
    image = f"{registry.host}/indexed:latest"
    cri = machine.cri

    def kill() -> None:
        machine.restart("daemon")
        machine.wait_until_ready()

    kill()
    cri.pull(image)
    kill()
    pod = cri.run_pod()
    kill()
    container = cri.run(pod, image, SLEEP)
    assert cri.execute(container, "python3", "-c", ADD, "1", "2") == "3\n"
    kill()
    cri.remove(container)
    container = cri.run(pod, image, SLEEP, "again")
    assert cri.execute(container, "python3", "-c", ADD, "1", "2") == "3\n"
    kill()
    cri.remove(container)
    cri.remove_pod(pod)
    cri.remove_image(image)
    cri.remove_image(f"{registry.host}/pause:1")
    nothing_is_left(machine)


@pytest.mark.parametrize("machine", ["1.6", "1.7", "2.1"], indirect=True)
def test_kills_at_any_moment(machine: Node, registry: Registry) -> None:
    """While images come and go and containers start, whatever runs is killed every now and then."""
    done = Event()

    def kill_on() -> None:
        moments = random.Random(0)
        try:
            for program in [*PROGRAMS, "worker"] * 2:
                time.sleep(moments.uniform(0.0, 1.5))
                machine.restart(program)
                machine.wait_until_ready()
        finally:
            done.set()

    killer = Thread(target=kill_on)
    killer.start()
    turn = 0
    while not done.is_set():
        for repository in ("indexed", "plain"):
            turn += 1
            live_a_life(machine, f"{registry.host}/{repository}:latest", f"{repository}-{turn}")
    killer.join()
    machine.wait_until_ready()
    give_back(machine)
    nothing_is_left(machine)


def live_a_life(machine: Node, image: str, name: str) -> None:
    """Pull, start, run, remove; each as often as it takes."""
    cri = machine.cri
    insist(cri.pull, image)
    attempts = count()
    pod = insist(lambda: cri.run_pod(f"{name}-{next(attempts)}"))
    deadline = time.monotonic() + PATIENCE_S
    for attempt in range(1000):
        try:
            container = cri.run(pod, image, SLEEP, f"container-{attempt}")
            assert cri.execute(container, "python3", "-c", ADD, "1", "2") == "3\n"
        except (grpc.RpcError, AssertionError):
            assert time.monotonic() < deadline, "no container has ever run"
            time.sleep(0.1)
        else:
            break
    insist(cri.remove_pod, pod)
    insist(cri.remove_image, image)


def insist(call: Callable[..., T], *arguments: object) -> T:
    """Try again as the kubelet does, while something is on its way up."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return call(*arguments)
        except grpc.RpcError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def test_an_orderly_end_of_snapshotter_and_containerd_leaves_containers_running(
    machine: Node, registry: Registry
) -> None:
    image = f"{registry.host}/indexed:latest"
    machine.cri.pull(image)
    pod = machine.cri.run_pod()
    container = machine.cri.run(pod, image, SLEEP)
    for program in ("snapshotter", "containerd"):
        machine.restart(program, signal.SIGTERM)
        machine.wait_until_ready()
        assert machine.cri.execute(container, "python3", "-c", ADD, "1", "2") == "3\n"
    machine.cri.remove(container)
    machine.cri.remove_pod(pod)
