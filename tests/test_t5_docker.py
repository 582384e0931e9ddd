"""Docker with its containerd image store: images run before they are pulled; what it does with them then."""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import grpc
import pytest

from lazyfs.snapshotter.content_store import ContentRefused, ContentStore
from lazyfs.snapshotter.labels import order_of
from tests.support.containerd_images import indexed_and_plain
from tests.support.containerd_node import PROGRAMS, Node, node
from tests.support.containerd_release import release
from tests.support.containers import until
from tests.support.docker import NAMESPACE, Docker, containerd_text, docker
from tests.support.docker_release import docker_programs
from tests.support.lab import Lab
from tests.support.registry import Registry
from tests.support.runner import LazyfsRunner

CHANGES = """
    echo new > /new; ln /new /etc/new; ln -s new /link; mkfifo /pipe; mkdir -m 1777 /made; rm -r /mnt
    rm -r /etc/apt; mkdir /etc/apt; rm /etc/debian_version; mv /etc/skel /etc/bones; echo file > /mnt
    echo more >> /etc/profile; chmod 700 /opt; chown 5:6 /srv; touch -d 2001-02-03 /made/old
    dd if=/dev/zero of=/sparse bs=1 seek=1M count=1 2> /dev/null
"""
DOCKERS = {
    *(".dockerenv", "dev", "dev/console", "dev/pts", "dev/shm", "proc", "sys"),
    *("etc", "etc/hostname", "etc/hosts", "etc/mtab", "etc/resolv.conf"),
}
"""What each container of its gets."""
ADD = "import sys; print(sum(map(int, sys.argv[1:])))"
UNREAD = ("decimal", "sqlite3", "ssl", "email", "xml.dom.minidom")
"""Modules of Python's that a start does not read."""
A_START = 9_000_000
"""Bytes that the start of an image of 83 MB may cost, its index included."""


@dataclass
class World:
    """A machine with docker, and a registry that counts.

    Attributes:
        registry: it.
        machine: where docker's containerd runs.
        docker: it.
    """

    registry: Registry
    machine: Node
    docker: Docker

    @property
    def moved(self) -> int:
        """Bytes of bodies that the registry has sent."""
        return sum(self.registry.journal.bytes_sent.values())

    def image(self, repository: str) -> str:
        return f"{self.registry.host}/{repository}:latest"

    def python(self, image: str, *words: str) -> str:
        """What python says in a new container."""
        return self.docker.start_once(image, "python3", "-c", ADD, *words).strip()

    @property
    def kept(self) -> int:
        """Bytes of what containerd has of images."""
        return sum(self.machine.blobs().values())


@pytest.fixture(scope="module")
def registry(lab: Lab, publisher: LazyfsRunner) -> Iterator[Registry]:
    with indexed_and_plain(lab, publisher) as registry:
        yield registry


@pytest.fixture
def world(request, lab: Lab, registry: Registry, tmp_path: Path) -> Iterator[World]:
    containerd = release(lab, getattr(request, "param", "1.7"))
    pause = f"{registry.host}/pause:1"
    with (
        node(tmp_path / "n", containerd, registry.host, pause, more=containerd_text()) as machine,
        docker(machine, docker_programs(lab), registry.host) as engine,
    ):
        yield World(registry, machine, engine)


@pytest.mark.parametrize("world", ["1.7", "2.1"], indirect=True)
def test_an_image_with_an_index_starts_without_being_pulled(world: World) -> None:
    image, engine, before = world.image("indexed"), world.docker, world.moved
    assert engine("info", "--format", "{{.Driver}}").strip() == "lazyfs"
    engine("pull", image)
    assert world.python(image, "20", "22") == "42"
    assert world.kept < 100_000
    assert world.moved - before < A_START
    container = engine("run", "--detach", "--network", "none", image, "sleep", "infinity").strip()
    engine("exec", container, "sh", "-c", "echo new > /new; rm /etc/debian_version")
    assert sorted(engine("diff", container).splitlines()) == ["A /new", "C /etc", "D /etc/debian_version"]
    engine("restart", "--time", "0", container)
    assert engine("exec", container, "cat", "/new") == "new\n"
    engine("rm", "--force", container)
    engine("rmi", image)
    world.machine.collect_garbage()
    assert world.machine.directories() == []
    assert world.machine.blobs() == {}


def test_a_container_reads_on_whoever_dies(world: World) -> None:
    image, engine, machine = world.image("indexed"), world.docker, world.machine
    engine("pull", image)
    container = engine("run", "--detach", "--network", "none", image, "sleep", "infinity").strip()
    for number, program in enumerate((*PROGRAMS, "worker", "docker")):
        if program == "docker":
            engine.restart()
        else:
            machine.restart(program)
            machine.wait_until_ready()
        until(lambda: engine.succeeds("exec", container, "true"), "docker reaches containerd again")
        program_of_it = f"import {UNREAD[number]}, sys; print(sys.argv[1])"
        assert engine("exec", container, "python3", "-c", program_of_it, program).strip() == program
    assert engine("inspect", "--format", "{{.State.Status}}", container).strip() == "running"


def test_an_image_without_an_index_is_pulled_and_has_one_the_next_time(world: World) -> None:
    image, engine = world.image("plain"), world.docker
    engine("pull", image)
    assert world.kept > 80_000_000
    assert world.python(image, "20", "22") == "42"
    (base,) = world.machine.snapshots.list('kind==committed,parent==""')
    order = order_of(base.labels, 1)
    assert order is not None
    engine("rmi", image)
    world.machine.wait_until_lazy(order)
    world.machine.collect_garbage()
    engine("pull", image)
    assert world.kept < 100_000
    assert world.python(image, "20", "22") == "42"


@pytest.mark.parametrize("world", ["1.7", "2.1"], indirect=True)
def test_a_commit_fetches_nothing_and_has_all_that_the_container_changed(
    world: World, tmp_path: Path
) -> None:
    image, engine = world.image("indexed"), world.docker
    engine("pull", image)
    engine("run", "--name", "changed", "--network", "none", image, "sh", "-c", CHANGES)
    made, before = f"{world.registry.host}/indexed:made", world.moved
    engine("commit", "changed", made)
    engine("commit", "changed", "again")  # the same layer, which containerd has
    assert world.moved - before < A_START
    engine("push", made)
    engine("create", "--name", "made", made)
    assert exported(engine, "made", tmp_path) == exported(engine, "changed", tmp_path)
    engine("rm", "changed", "made")
    engine("rmi", made, "again", image)
    engine("pull", made)
    assert engine.start_once(made, "cat", "/new") == "new\n"


def test_of_a_layer_that_containerd_refuses_nothing_is_left(world: World) -> None:
    machine, blob = world.machine, b"layer"
    digest = f"sha256:{sha256(blob).hexdigest()}"
    with grpc.insecure_channel(f"unix:{machine.socket('containerd')}") as channel:
        store = ContentStore(channel, NAMESPACE)
        with pytest.raises(ContentRefused, match="label"):
            store.put(BytesIO(blob), digest, len(blob), {"long": "x" * 5000})
        assert "lazyfs" not in machine.ctr("content", "active", namespace=NAMESPACE)
        assert "lazyfs" not in machine.ctr("leases", "ls", namespace=NAMESPACE)
        store.put(BytesIO(blob), digest, len(blob), {})
    assert machine.blobs() == {digest: len(blob)}


def exported(engine: Docker, container: str, place: Path) -> dict[str, tuple[object, ...]]:
    """All that docker tells of a container's files, but those that it puts there itself; by name."""
    engine("export", "--output", place / "all.tar", container)
    with tarfile.open(place / "all.tar") as whole:
        return {
            member.name: (
                *(member.type, member.mode, member.uid, member.gid, member.linkname, int(member.mtime)),
                *(member.size, member.isreg() and whole.extractfile(member).read()),
            )
            for member in whole
            if member.name not in DOCKERS
        }


def test_once_its_layers_are_fetched_docker_lists_and_saves_a_lazy_image(
    world: World, tmp_path: Path
) -> None:
    image, engine = world.image("indexed"), world.docker
    engine("pull", image)
    assert engine("images", "--quiet") == ""  # of docker 26; later ones list it
    world.machine.ctr("content", "fetch", "--plain-http", image, namespace=NAMESPACE)
    assert world.kept > 80_000_000
    assert engine("images", "--format", "{{.Repository}}:{{.Tag}}").strip() == image
    engine("save", "--output", tmp_path / "saved.tar", image)
    with tarfile.open(tmp_path / "saved.tar") as saved:
        blobs = [member.size for member in saved if member.name.startswith("blobs/sha256/")]
    assert sum(blobs) > 80_000_000
    assert world.python(image, "20", "22") == "42"
