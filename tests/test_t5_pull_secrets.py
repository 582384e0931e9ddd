"""Private images by the kubelet's pull secrets, with real containerd: lazy, and no secret is left behind."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import pytest

from lazyfs.snapshotter.labels import order_of
from tests.support.containerd_images import pause_image, push_layout_files
from tests.support.containerd_node import Node, node
from tests.support.containerd_release import Release, release
from tests.support.cri import Cri
from tests.support.lab import Lab
from tests.support.registry import Registry
from tests.support.registry_auth import Access
from tests.support.runner import LazyfsRunner

SECRET, NEXT, WRONG = "f1rst-s3cret", "sec0nd-s3cret", "wr0ng-s3cret"
USER = "node"
MODES = {"1.6": "basic", "2.1": "token"}
"""How the registry tells who asks, by the release of containerd."""
SLEEP = ["/bin/sleep", "infinity"]
VERSION = ("python3", "-c", "import sysconfig; print(sysconfig.get_python_version())")


@dataclass
class World:
    """Two registries: one for all, with the sandbox's image, and one that wants to know who asks.

    Attributes:
        public: the first.
        private: the second; it has the python image and its index.
        image: the python image's name there.
    """

    public: Registry
    private: Registry
    image: str

    def change_password(self, password: str) -> None:
        """From now on nothing else is let in, also no token from before."""
        self.private.access.users = {USER: password}
        self.private.access.expire_tokens()


@pytest.fixture(params=MODES)
def containerd(request: pytest.FixtureRequest, lab: Lab) -> Release:
    return release(lab, request.param)


@pytest.fixture
def world(containerd: Release, lab: Lab, publisher: LazyfsRunner, tmp_path: Path) -> Iterator[World]:
    mode, users = MODES[containerd.version], {USER: SECRET}
    access = Access(mode=mode, users=users, anonymous_pull=False, token_field="access_token")
    with Registry() as public, Registry(access=access) as private:
        public.push("pause", pause_image(), tag="1")
        push_layout_files(private, "python", lab.image("python"))
        publisher = replace(publisher, home=tmp_path / "home")
        publisher("login", "--username", USER, "--password-stdin", private.host, input=SECRET)
        image = f"{private.host}/python:latest"
        publisher("index", "--push", image)
        yield World(public, private, image)


@pytest.fixture
def machine(containerd: Release, world: World, tmp_path: Path) -> Iterator[Node]:
    with node(tmp_path / "n", containerd, world.public.host, f"{world.public.host}/pause:1") as machine:
        machine.know(world.private.host)
        yield machine
        assert_no_secrets(machine)


def assert_no_secrets(machine: Node) -> None:
    """Neither in logs nor in any file of ours."""
    for program in ("daemon", "snapshotter"):
        assert "s3cret" not in machine.log(program)
    content = machine.snapshots_root / "snapshots"
    command = ["grep", "--recursive", "--files-with-matches", "--devices=skip", "-e", "[0-9a-z]*-s3cret"]
    places = [machine.top / name for name in ("lazyfs", "cache", "home")]
    files = [path for path in machine.snapshots_root.iterdir() if path != content]
    found = subprocess.run([*command, *places, *files], capture_output=True, text=True, check=False)
    assert found.stdout == ""


def test_a_private_image_is_lazy_by_its_pull_secret(machine: Node, world: World) -> None:
    machine.kubelet.pull(world.image, username=USER, password=SECRET)
    layers = machine.pulled_layers(world.image)
    assert len(layers) == 5
    assert machine.blobs().keys().isdisjoint(layers)

    pod = machine.kubelet.run_pod()
    container = machine.kubelet.run(pod, world.image, SLEEP)
    assert machine.kubelet.execute(container, *VERSION) == "3.11\n"


def test_past_the_kubelets_door_it_is_pulled_whole(machine: Node, world: World) -> None:
    machine.cri.pull(world.image, username=USER, password=SECRET)
    layers = machine.pulled_layers(world.image)
    assert len(layers) == 5
    assert machine.blobs().keys() >= set(layers)


def test_a_private_image_without_an_index_gets_one(machine: Node, world: World, lab: Lab) -> None:
    push_layout_files(world.private, "plain", lab.image("base"))
    image = f"{world.private.host}/plain:latest"
    machine.kubelet.pull(image, username=USER, password=SECRET)
    (base,) = machine.snapshots.list(f'labels."containerd.io/snapshot/cri.image-ref"=="{image}",parent==""')
    order = order_of(base.labels, 1)
    assert order is not None
    machine.wait_until_lazy(order)


def test_containers_read_on_after_everything_was_killed_and_tokens_are_dead(
    machine: Node, world: World
) -> None:
    machine.kubelet.pull(world.image, username=USER, password=SECRET)
    pod = machine.kubelet.run_pod()
    container = machine.kubelet.run(pod, world.image, SLEEP)
    for victim in ("worker", "daemon", "snapshotter", "containerd"):
        machine.restart(victim)
        machine.wait_until_ready()
    world.private.access.expire_tokens()
    assert machine.kubelet.execute(container, *VERSION) == "3.11\n"


def test_another_pull_brings_the_new_password(machine: Node, world: World) -> None:
    machine.kubelet.pull(world.image, username=USER, password=SECRET)
    pod = machine.kubelet.run_pod()
    container = machine.kubelet.run(pod, world.image, SLEEP)
    world.change_password(NEXT)
    machine.kubelet.pull(world.image, username=USER, password=NEXT)
    assert machine.kubelet.execute(container, *VERSION) == "3.11\n"


def test_a_pull_with_a_wrong_password_fails_and_hurts_nobody(machine: Node, world: World) -> None:
    machine.kubelet.pull(world.image, username=USER, password=SECRET)
    pod = machine.kubelet.run_pod()
    container = machine.kubelet.run(pod, world.image, SLEEP)
    by_containerd, by_us = (refusal(cri, world.image) for cri in (machine.cri, machine.kubelet))
    assert by_us.code() == by_containerd.code()
    assert by_us.details() == by_containerd.details()
    world.private.access.expire_tokens()
    world.private.journal.clear()
    assert machine.kubelet.execute(container, *VERSION) == "3.11\n"
    assert world.private.journal.bytes_sent["blob"] > 0


def refusal(cri: Cri, image: str) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        cri.pull(image, username=USER, password=WRONG)
    return caught.value


def test_everything_else_passes_as_it_is(machine: Node, world: World) -> None:
    machine.kubelet.pull(f"{world.public.host}/pause:1")
    assert machine.kubelet.images() == machine.cri.images() != []
    machine.kubelet.remove_image(f"{world.public.host}/pause:1")
    assert machine.cri.images() == []
    with grpc.insecure_channel(f"unix:{machine.socket('images')}") as channel:
        ask = channel.unary_unary("/runtime.v1.RuntimeService/Version")
        with pytest.raises(grpc.RpcError) as caught:
            ask(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("other", ["--socket", "--containerd", "--daemon"])
def test_a_socket_is_for_one_thing(lazyfs: LazyfsRunner, tmp_path: Path, other: str) -> None:
    options = ["--root", tmp_path / "root", "--image-service", tmp_path / "s", other, tmp_path / "s"]
    assert "are different sockets" in lazyfs("snapshotter", *options, exit_code=64).stderr
    assert not (tmp_path / "root").exists()
