"""Real containerd, each release: images pulled and run by CRI, removed, and collected."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from lazyfs.oci.chain import chain_name
from lazyfs.snapshotter.labels import order_of
from tests.support.containerd_images import pause_image, push_layout_files
from tests.support.containerd_node import Node, node
from tests.support.containerd_release import SUITES, Release, release
from tests.support.lab import Lab
from tests.support.lab_foreign import tools
from tests.support.registry import Registry
from tests.support.runner import LazyfsRunner

ADD = "import sys; print(sum(map(int, sys.argv[1:])))"
PODS = 10  # the shim of containerd 1.6, one for a pod, deadlocks when several dozen processes end at once
SLEEP = ["/bin/sleep", "infinity"]
A_START = 9_000_000
"""Bytes that the start of an image of 83 MB may cost, which is foreseen from its pull on, and its index."""


@dataclass
class World:
    """A registry that counts, with the sandbox's image and the python image, and who published its index.

    Attributes:
        registry: it.
        image: the python image's name there.
        publisher: the command line on another machine.
    """

    registry: Registry
    image: str
    publisher: LazyfsRunner

    @property
    def moved(self) -> int:
        """Bytes of bodies that the registry has sent."""
        return sum(self.registry.journal.bytes_sent.values())

    def publish(self) -> None:
        self.publisher("index", "--push", self.image)


@pytest.fixture
def world(lab: Lab, publisher: LazyfsRunner) -> Iterator[World]:
    with Registry() as registry:
        registry.push("pause", pause_image(), tag="1")
        push_layout_files(registry, "python", lab.image("python"))
        yield World(registry, f"{registry.host}/python:latest", publisher)


@pytest.fixture(params=SUITES)
def containerd(request, lab: Lab) -> Release:
    return release(lab, request.param)


@pytest.fixture
def machine(containerd: Release, world: World, tmp_path: Path) -> Iterator[Node]:
    host = world.registry.host
    with node(tmp_path / "n", containerd, host, f"{host}/pause:1") as machine:
        yield machine


@pytest.fixture
def old_machine(lab: Lab, world: World, tmp_path: Path) -> Iterator[Node]:
    """A machine with the containerd that is installed here."""
    host = world.registry.host
    with node(tmp_path / "n", release(lab, "1.6"), host, f"{host}/pause:1") as machine:
        yield machine


def test_a_published_image_starts_without_being_pulled(machine: Node, world: World) -> None:
    world.publish()
    pod = machine.cri.run_pod()
    world.registry.journal.clear()

    machine.cri.pull(world.image)
    layers = machine.pulled_layers(world.image)
    assert len(layers) == 5
    assert set(layers).isdisjoint(machine.blobs())
    assert world.moved < A_START
    assert machine.mounts() == []

    container = machine.cri.run(pod, world.image, ["python3", "-c", ADD, "1", "2"], "sum")
    assert machine.cri.wait(container) == 0
    assert world.moved < A_START
    assert set(layers).isdisjoint(machine.blobs())
    assert machine.mounts() == [chain_name(layers)]

    sleeper = machine.cri.run(pod, world.image, SLEEP)
    assert machine.cri.execute(sleeper, "python3", "-c", ADD, "1", "2") == "3\n"
    machine.cri.execute(sleeper, "sh", "-c", "echo changed > /etc/hostname && rm -r /usr/share/doc")
    assert machine.cri.execute(sleeper, "cat", "/etc/hostname") == "changed\n"
    machine.cri.remove(sleeper)
    machine.cri.remove(container)
    machine.cri.remove_pod(pod)
    machine.cri.remove_image(world.image)
    machine.cri.remove_image(f"{world.registry.host}/pause:1")
    machine.collect_garbage()
    assert machine.snapshots.list() == []
    assert machine.mounts() == []
    assert machine.directories() == []
    assert machine.blobs() == {}


def test_an_image_without_an_index_is_unpacked_and_indexed_for_the_next_time(
    machine: Node, world: World
) -> None:
    machine.cri.pull(world.image)
    wanted = f'labels."containerd.io/snapshot/cri.image-ref"=="{world.image}"'
    (base,) = machine.snapshots.list(f'{wanted},parent==""')
    order = order_of(base.labels, 1)
    assert order is not None
    assert machine.mounts() == []
    pod = machine.cri.run_pod()
    container = machine.cri.run(pod, world.image, SLEEP)
    assert machine.cri.execute(container, "python3", "-c", ADD, "1", "2") == "3\n"
    machine.cri.remove(container)
    machine.wait_until_lazy(order)
    machine.cri.remove_image(world.image)
    machine.collect_garbage()
    assert machine.snapshots.list(wanted) == []
    world.registry.journal.clear()
    machine.cri.pull(world.image)
    assert len(machine.pulled_layers(world.image)) == 5
    assert world.moved < A_START
    container = machine.cri.run(pod, world.image, SLEEP)
    assert machine.cri.execute(container, "python3", "-c", ADD, "3", "4") == "7\n"


def test_a_plain_pull_and_run_work_too(old_machine: Node, world: World) -> None:
    """ctr of 1.6 says nothing of the image: its layers are unpacked."""
    world.publish()
    machine = old_machine
    machine.ctr(
        *("images", "pull", "--plain-http", "--snapshotter", "lazyfs", world.image), namespace="default"
    )
    run_with_ctr(machine, world.image, "default")
    assert machine.mounts() == []
    machine.ctr("images", "rm", "--sync", world.image, namespace="default")
    assert machine.snapshots.list() == []
    assert machine.directories() == []


@pytest.mark.parametrize("client", ["ctr-remote", "soci"])
def test_the_clients_of_other_snapshotters_pull_lazily(
    client, old_machine: Node, world: World, lab: Lab
) -> None:
    world.publish()
    command = ["ctr-remote"] if client == "ctr-remote" else tools(lab).command("soci")
    world.registry.journal.clear()
    machine = old_machine
    machine.remote_pull(command, world.image, "default")
    assert world.moved < A_START
    assert len(machine.snapshots.list("kind==committed")) == 5
    run_with_ctr(machine, world.image, "default")


def test_the_transfer_service_pulls_lazily(lab: Lab, world: World, tmp_path: Path) -> None:
    world.publish()
    host = world.registry.host
    with node(tmp_path / "n", release(lab, "2.1"), host, f"{host}/pause:1") as machine:
        world.registry.journal.clear()
        pull = ("images", "pull", "--hosts-dir", f"{machine.top}/certs.d", "--snapshotter", "lazyfs")
        machine.ctr(*pull, world.image, namespace="default")
        assert world.moved < A_START
        assert len(machine.pulled_layers(world.image)) == 5
        run_with_ctr(machine, world.image, "default")


def run_with_ctr(machine: Node, image: str, namespace: str) -> None:
    """Run a container of an image with ctr."""
    run = ("run", "--rm", "--snapshotter", "lazyfs", "--cgroup", f"/{machine.name}", image, "one")
    assert machine.ctr(*run, "python3", "-c", ADD, "5", "6", namespace=namespace) == "11\n"


def test_two_namespaces_share_a_lazy_image(old_machine: Node, world: World) -> None:
    world.publish()
    machine = old_machine
    machine.cri.pull(world.image)
    lazy = machine.snapshots.names()
    machine.remote_pull(["ctr-remote"], world.image, "other")
    assert machine.snapshots.names() == lazy
    machine.cri.remove_image(world.image)
    machine.collect_garbage()
    assert machine.snapshots.names() == lazy
    run_with_ctr(machine, world.image, "other")
    machine.ctr("images", "rm", "--sync", world.image, namespace="other")
    assert machine.snapshots.list() == []
    assert machine.mounts() == []


def test_fifty_containers_start_at_once_on_one_mount(old_machine: Node, world: World) -> None:
    world.publish()
    machine = old_machine
    machine.cri.pull(world.image)
    pods = [machine.cri.run_pod(f"pod-{number}") for number in range(PODS)]

    def start(number: int) -> str:
        command = ["python3", "-c", ADD, str(number)]
        name = f"container-{number}"
        container = machine.cri.run(pods[number % PODS], world.image, command, name)
        assert machine.cri.wait(container) == 0
        return container

    with ThreadPoolExecutor(50) as pool:
        containers = list(pool.map(start, range(50)))
        assert len(machine.mounts()) == 1
        assert len(machine.snapshots.list("kind==active")) == PODS + 50
        list(pool.map(machine.cri.remove, containers))
    machine.collect_garbage()
    assert machine.mounts() == []
    assert len(machine.snapshots.list("kind==active")) == PODS
