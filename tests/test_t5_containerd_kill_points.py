"""containerd killed at each of its calls to the snapshotter: before we hear of it, and after our answer."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from threading import Lock
from typing import TypeVar

import grpc
import pytest

from tests.support.containerd_images import pause_image, push_layout_files
from tests.support.containerd_left import end_leases, give_back, nothing_is_left
from tests.support.containerd_node import Node, node
from tests.support.containerd_release import release
from tests.support.lab import Lab
from tests.support.registry import Registry
from tests.support.runner import LazyfsRunner
from tests.support.snapshot_relay import relayed

T = TypeVar("T")

SLEEP = ["/bin/sleep", "infinity"]
CALLS = (
    *(("pod", "Prepare"), ("pod", "Commit"), ("pod", "Mounts"), ("pull", "Prepare")),
    *(("start", "Prepare"), ("start", "Mounts"), ("remove", "Remove"), ("remove image", "Remove")),
)
MOST_LIVES = 4
METHODS = ("Prepare", "Commit", "Mounts", "Remove")  # CRI's statistics call others at any time


class Killer:
    """Kills containerd at each kind of call once, while something is under way.

    Attributes:
        machine: the containerd's.
        deaths: what was under way, the method and the moment of each.
    """

    machine: Node

    def __init__(self) -> None:
        self._lock = Lock()
        self._under_way = ""
        self.deaths: list[tuple[str, str, str]] = []

    def watch(self, method: str, moment: str) -> None:
        """Told by the relay."""
        with self._lock:
            death = (self._under_way, method, moment)
            if self._under_way and method in METHODS and death not in self.deaths:
                self.deaths.append(death)
                self._under_way = ""
                self.machine.restart("containerd")

    def insist(self, under_way: str, call: Callable[[], T]) -> T:
        """Do something until containerd is not killed at it any more."""
        while True:
            deaths = len(self.deaths)
            self._under_way = under_way
            try:
                result = call()
            except (grpc.RpcError, AssertionError):  # of CRI, and of ctr
                if len(self.deaths) == deaths:
                    raise
            finally:
                with self._lock:
                    self._under_way = ""
            if len(self.deaths) == deaths:
                return result
            self.machine.wait_until_ready()


@pytest.fixture
def killer() -> Killer:
    return Killer()


@pytest.fixture
def registry(lab: Lab, publisher: LazyfsRunner) -> Iterator[Registry]:
    """The base image with an index."""
    with Registry() as registry:
        registry.push("pause", pause_image(), tag="1")
        push_layout_files(registry, "indexed", lab.image("base"))
        publisher("index", "--push", f"{registry.host}/indexed:latest")
        yield registry


@pytest.fixture(params=["1.6", "1.7", "2.1"])
def machine(
    request: pytest.FixtureRequest, lab: Lab, registry: Registry, tmp_path: Path, killer: Killer
) -> Iterator[Node]:
    containerd = release(lab, request.param)
    socket = tmp_path / "relay"
    with (
        relayed(socket, tmp_path / "n" / "snapshotter.sock", killer.watch),
        node(tmp_path / "n", containerd, registry.host, f"{registry.host}/pause:1", plugin=socket) as machine,
    ):
        killer.machine = machine
        yield machine


def test_containerd_killed_at_each_call(machine: Node, registry: Registry, killer: Killer) -> None:
    """Nothing is lost, and nothing is left once what was cut off is given back."""
    wanted = {(*call, moment) for call in CALLS for moment in ("before", "after")}
    names = (f"cut-{number}" for number in count())
    for _ in range(MOST_LIVES):  # another collection of garbage may come first with a Remove
        live(machine, f"{registry.host}/indexed:latest", killer, names)
        if wanted <= set(killer.deaths):
            break
    assert wanted <= set(killer.deaths)
    assert machine.cri.pods(), "no sandbox of which nobody was told"
    give_back(machine)
    nothing_is_left(machine)


def live(machine: Node, image: str, killer: Killer, names: Iterator[str]) -> None:
    """The whole life of a pod and its image, until nothing of it is cut off any more."""
    cri = machine.cri
    pod = killer.insist("pod", lambda: cri.run_pod(next(names)))  # its image is pulled as ever
    killer.insist("pull", partial(cri.pull, image))
    container = killer.insist("start", lambda: cri.run(pod, image, SLEEP, next(names)))
    assert cri.execute(container, "sh", "-c", "echo kept > /kept; cat /kept") == "kept\n"
    killer.insist("remove", partial(remove, machine, pod))
    end_leases(machine)  # of pulls that were cut short; they hold the image's layers
    killer.insist("remove image", partial(remove_image, machine, image))


def remove(machine: Node, pod: str) -> None:
    """Remove a sandbox with its containers, if it is still there, and their snapshots at once."""
    if pod in machine.cri.pods():
        machine.cri.remove_pod(pod)
    machine.collect_garbage()


def remove_image(machine: Node, image: str) -> None:
    """Remove an image and, whatever cut its removal short, its snapshots."""
    machine.cri.remove_image(image)
    machine.collect_garbage()
