"""Images as volumes of Kubernetes, by real containerd: read as they are used."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.containerd_images import indexed_and_plain
from tests.support.containerd_node import Node, node
from tests.support.containerd_release import release
from tests.support.lab import Lab
from tests.support.registry import Registry
from tests.support.runner import LazyfsRunner

SLEEP = ["/bin/sleep", "infinity"]
A_START = 9_000_000
"""Bytes that the start of an image of 83 MB may cost, of which a volume is, too, and that is foreseen."""


@pytest.fixture
def registry(lab: Lab, publisher: LazyfsRunner) -> Iterator[Registry]:
    with indexed_and_plain(lab, publisher) as registry:
        yield registry


@pytest.fixture
def machine(lab: Lab, registry: Registry, tmp_path: Path) -> Iterator[Node]:
    with node(tmp_path / "n", release(lab, "2.1"), registry.host, f"{registry.host}/pause:1") as machine:
        yield machine


def test_a_volume_is_read_as_it_is_used_and_leaves_nothing(machine: Node, registry: Registry) -> None:
    image = f"{registry.host}/indexed:latest"
    machine.cri.pull(image)
    pod = machine.cri.run_pod()
    registry.journal.clear()
    volume = {"container_path": "/volume", "image": {"image": image}, "readonly": True}
    container = machine.cri.run(pod, image, SLEEP, mounts=[volume])
    assert machine.cri.execute(container, "cat", "/volume/etc/debian_version").startswith("12")
    assert sum(registry.journal.bytes_sent.values()) < A_START
    machine.kill_worker()
    machine.cri.execute(container, "/volume/usr/bin/python3", "-c", "import sqlite3")
    assert len(machine.mounts()) == 1
    machine.cri.remove_pod(pod)
    for name in (image, f"{registry.host}/pause:1"):
        machine.cri.remove_image(name)
    machine.collect_garbage()
    assert machine.snapshots.list() == []
    assert machine.mounts() == []
