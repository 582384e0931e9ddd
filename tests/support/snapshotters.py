"""A snapshotter in a thread of the test, with a daemon that is a few directories."""

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path

import trio

from lazyfs.errors import LazyfsError, Unreachable
from lazyfs.oci.chain import ChainOrder, chain_name
from lazyfs.snapshotter.chains import Chains
from lazyfs.snapshotter.labels import REF
from lazyfs.snapshotter.run import Tell, run_snapshotter
from tests.support.snapshot_client import SnapshotClient, connected


@dataclass(frozen=True, slots=True)
class FakeAssessment:
    lazy: bool
    why: str = ""


@dataclass(frozen=True, slots=True)
class FakeMount:
    name: str
    path: Path


def _set() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


@dataclass
class FakeChains:
    """Stands for the daemon: a mount is a directory, and every image it knows is lazy.

    Attributes:
        home: where its mounts are.
        images: layers of each image it knows, from the bottom.
        away: whether nobody answers.
        mounted: names of what is mounted.
        asked: every question, as a line.
        may_release: what a release waits for.
    """

    home: Path
    images: dict[str, list[str]] = field(default_factory=dict)
    away: bool = False
    mounted: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    may_release: threading.Event = field(default_factory=_set)

    async def assess(self, order: ChainOrder) -> FakeAssessment:
        self._hear(f"assess {order.image} {order.layers}")
        layers = self.images.get(order.image, [])
        if order.layer not in layers[order.layers - 1 : order.layers]:
            return FakeAssessment(lazy=False, why="it has no index")
        return FakeAssessment(lazy=True)

    async def mount(self, order: ChainOrder) -> FakeMount:
        self._hear(f"mount {order.image} {order.layers}")
        layers = self.images.get(order.image)
        if layers is None:
            raise LazyfsError(f"{order.image} is gone")
        name = chain_name(layers[: order.layers])
        path = self.home / name
        path.mkdir(parents=True, exist_ok=True)
        for layer in layers[: order.layers]:
            (path / layer.removeprefix("sha256:")[:8]).write_text(layer)
        self.mounted.add(name)
        return FakeMount(name, path)

    async def release(self, name: str) -> None:
        self._hear(f"release {name}")
        await trio.to_thread.run_sync(self.may_release.wait)
        self.mounted.discard(name)

    async def keep(self, names: Collection[str]) -> list[str]:
        self._hear("keep")
        others = sorted(self.mounted - set(names))
        self.mounted -= set(others)
        return others

    async def index(self, order: ChainOrder) -> bool:
        self._hear(f"index {order.image} {order.layers}")
        return True

    def _hear(self, question: str) -> None:
        if self.away:
            raise Unreachable("nobody answers")
        self.asked.append(question)


def digest(text: str) -> str:
    """Some digest."""
    return "sha256:" + sha256(text.encode()).hexdigest()


def chain_id(layers: Collection[str]) -> str:
    """Stands for the chainID of these layers."""
    return digest("chain " + " ".join(layers))


def cri_labels(image: str, layers: list[str], depth: int) -> dict[str, str]:
    """What CRI says of a layer of an image, counted from 1."""
    cri = "containerd.io/snapshot/cri."
    return {
        REF: chain_id(layers[:depth]),
        cri + "image-ref": image,
        cri + "manifest-digest": digest(image),
        cri + "layer-digest": layers[depth - 1],
        cri + "image-layers": ",".join(layers[depth - 1 :]),
    }


def stargz_labels(image: str, layers: list[str], depth: int) -> dict[str, str]:
    """What ctr-remote says of a layer of an image."""
    stargz = "containerd.io/snapshot/remote/stargz."
    return {
        REF: chain_id(layers[:depth]),
        stargz + "reference": image,
        stargz + "digest": layers[depth - 1],
        stargz + "layers": ",".join(layers[depth - 1 :]),
        stargz + "prefetch": "10485760",
    }


@contextmanager
def served(
    root: Path, chains: Chains, socket: Path | None = None, tell: Tell | None = None
) -> Iterator[SnapshotClient]:
    """A client of a snapshotter that keeps its things in `root`, for as long as the block lasts."""
    socket = socket or root.with_name(root.name + ".sock")
    scope = trio.CancelScope()
    tokens: list[trio.lowlevel.TrioToken] = []
    failures: list[BaseException] = []

    async def main() -> None:
        tokens.append(trio.lowlevel.current_trio_token())
        with scope:
            await run_snapshotter(root, socket, chains, chains, tell=tell)

    def run() -> None:
        try:
            trio.run(main)
        except BaseException as error:  # noqa: BLE001  # shown by the test
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        with connected(socket) as client:
            client.list()
            yield client
    finally:
        tokens[0].run_sync_soon(partial(scope.cancel))
        thread.join()
        if failures:
            raise failures[0]
