"""A machine with Podman whose layers come from our daemon, and the registry that it pulls from."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.containerd_images import push_layout_files
from tests.support.lab import Lab
from tests.support.podman import Podman, podman
from tests.support.podman_release import release
from tests.support.registry import Registry
from tests.support.runner import LazyfsRunner
from tests.support.service import Daemon, running_daemon

ADD = "import sys; print(sum(map(int, sys.argv[1:])))"
A_START = 9_000_000
"""Bytes that a start of the python image of 83 MB may cost, its index included."""

Publish = Callable[[str], Registry]
"""Puts an image of the laboratory into the registry, and its index beside it."""


@dataclass
class Node:
    """A machine with Podman.

    Attributes:
        registry: which counts.
        daemon: serves layers.
        podman: takes them from it.
        store: where it looks.
    """

    registry: Registry
    daemon: Daemon
    podman: Podman
    store: Path

    def name(self, repository: str) -> str:
        return f"{self.registry.host}/{repository}:latest"

    def python(self, *words: str) -> str:
        """What python says in a container."""
        return self.podman.start(self.name("python"), "python3", "-c", ADD, *words).strip()

    def root(self, repository: str) -> Path:
        """Where Podman mounts an image that it has."""
        return Path(self.podman.run("image", "mount", self.name(repository)).stdout.strip())

    def mounted(self) -> list[dict]:
        """The layers that the daemon has mounted, and does not only keep for a while."""
        return [mount for mount in self.daemon.ask("mounts") if mount["state"] != "idle"]

    @property
    def moved(self) -> int:
        """Bytes of bodies that the registry has sent."""
        return sum(self.registry.journal.bytes_sent.values())


@contextmanager
def publishing(lab: Lab, publisher: LazyfsRunner) -> Iterator[Publish]:
    """A registry, for as long as the block lasts."""
    there = set()
    with Registry() as registry:

        def publish(name: str) -> Registry:
            if name not in there:
                push_layout_files(registry, name, lab.image(name))
                publisher("index", "--push", f"{registry.host}/{name}:latest")
                there.add(name)
            registry.journal.clear()
            return registry

        yield publish


@contextmanager
def serving(place: Path, lab: Lab, host: str, version: str, *flags: str) -> Iterator[tuple[Daemon, Podman]]:
    store = place / "store"
    with (
        running_daemon(place / "daemon", flags=["--layer-store", str(store), *flags]) as daemon,
        podman(release(lab, version), registries=[host], layer_stores=[store]) as engine,
    ):
        yield daemon, engine


@contextmanager
def running_node(place: Path, lab: Lab, registry: Registry, *flags: str) -> Iterator[Node]:
    with serving(place, lab, registry.host, "4.3", "--trust-index", *flags) as (daemon, engine):
        yield Node(registry, daemon, engine, place / "store")
