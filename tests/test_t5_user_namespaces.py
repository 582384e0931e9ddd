"""Containers with a user namespace of their own under real containerd: lazy all the same."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.containerd_images import indexed_and_plain, pause_program, push_layout_files
from tests.support.containerd_node import Node, node
from tests.support.containerd_release import release
from tests.support.containerd_users import configuration, hide_hybrid_cgroups
from tests.support.images import build_image
from tests.support.lab import Lab
from tests.support.registry import Registry
from tests.support.runner import LazyfsRunner, executable
from tests.support.tars import file, tar

FIRST = 200_000
MAP = f"0:{FIRST}:65536"
IDS = [{"host_id": FIRST, "container_id": 0, "length": 65536}]
VOLUMES = {"uid_mappings": IDS, "gid_mappings": IDS}
USERS = {"userns_options": {"uids": IDS, "gids": IDS}}
LOOK = "cat /proc/self/uid_map; stat -c '%n %u %g' / /etc/shadow; touch /new; chown 7:8 /new; rm /etc/shells"
SEEN = f"0 {FIRST} 65536 / 0 0 /etc/shadow 0 42".split()
SLEEP = ["/bin/sleep", "infinity"]
A_START = 9_000_000
"""Bytes that the start of an image of 83 MB may cost, which is foreseen from its pull on."""


@pytest.fixture(scope="module")
def registry(lab: Lab, publisher: LazyfsRunner) -> Iterator[Registry]:
    with indexed_and_plain(lab, publisher) as registry:
        push_layout_files(registry, "base", lab.image("base"))
        publisher("index", "--push", f"{registry.host}/base:latest")
        yield registry


@pytest.fixture(scope="module")
def machine(
    request, lab: Lab, registry: Registry, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    top = tmp_path_factory.mktemp("users")
    more, sandbox = configuration(lab, top), f"{registry.host}/pause:1"
    with node(
        top / "u", release(lab, "2.1"), registry.host, sandbox, more=more, driver=request.param
    ) as machine:
        hide_hybrid_cgroups(machine)
        yield machine


def moved(registry: Registry) -> int:
    return sum(registry.journal.bytes_sent.values())


def explained(machine: Node, container: str) -> dict[str, Any]:
    """What is told of the image of a container, by its root."""
    root = machine.inside("sh", "-c", f"echo /run/containerd/*/*/k8s.io/{container}/rootfs").strip()
    place = ("--daemon", str(machine.socket("daemon")), "--cache-dir", f"{machine.top}/cache")
    told: dict[str, Any] = json.loads(machine.inside(executable(), "explain", "--json", *place, root))
    return told


@pytest.mark.parametrize(
    ("machine", "repository"),
    [("erofs", "indexed"), ("erofs", "plain"), ("fuse", "indexed")],
    indirect=["machine"],
)
def test_a_pod_with_users_of_its_own_is_as_lazy_as_any(
    machine: Node, registry: Registry, repository: str
) -> None:
    image = f"{registry.host}/{repository}:latest"
    machine.cri.pull(image)
    pod = machine.cri.run_pod(repository, USERS)
    registry.journal.clear()
    volume = {"container_path": "/volume", "image": {"image": image}, "readonly": True, **VOLUMES}
    container = machine.cri.run(pod, image, SLEEP, mounts=[volume])
    assert machine.cri.execute(container, "sh", "-c", LOOK).split() == SEEN
    assert machine.cri.execute(container, "stat", "-c", "%u %g", "/volume/etc/shadow") == "0 42\n"
    if repository == "indexed":  # the other is fetched to be indexed meanwhile
        assert moved(registry) < A_START
        assert explained(machine, container)["image"] == image
    machine.kill_worker()
    assert machine.cri.execute(container, "python3", "-c", "print(6 * 7)") == "42\n"
    (new,) = machine.snapshots_root.glob("snapshots/*/fs/new")
    assert (new.stat().st_uid, new.stat().st_gid) == (FIRST + 7, FIRST + 8)
    machine.cri.remove_pod(pod)
    machine.cri.remove_image(image)
    machine.cri.remove_image(f"{registry.host}/pause:1")
    machine.collect_garbage()
    assert machine.snapshots.list() == []
    assert machine.mounts() == []
    assert machine.directories() == []


@pytest.mark.parametrize("machine", ["erofs"], indirect=True)
def test_an_image_on_a_lazy_one_that_has_no_index_itself_runs_too(
    machine: Node, registry: Registry, publisher: LazyfsRunner
) -> None:
    """Its layer is unpacked over a lazy tree, and containerd cannot map both."""
    lower, upper = tar(file(b"sleep", pause_program(), mode=0o755)), tar(file(b"new", uid=5, gid=6))
    images = {"lower": build_image([lower]), "upper": build_image([lower, upper])}
    names = {repository: f"{registry.host}/{repository}:latest" for repository in images}
    for repository, image in images.items():
        registry.push(repository, image)
    publisher("index", "--push", names["lower"])
    for name in names.values():
        machine.cri.pull(name)
    pod = machine.cri.run_pod("upper", USERS)
    container = machine.cri.create(pod, names["upper"], ["/sleep"])
    machine.restart("snapshotter")  # its clones go
    machine.wait_until_ready()
    machine.cri.start(container)
    (root,) = machine.inside("sh", "-c", f"ls -d /run/containerd/state/*/k8s.io/{container}/rootfs").split()
    owners = machine.inside("stat", "-c", "%u:%g", root, f"{root}/sleep", f"{root}/new").split()
    assert owners == [f"{FIRST}:{FIRST}", f"{FIRST}:{FIRST}", f"{FIRST + 5}:{FIRST + 6}"]
    machine.cri.remove_pod(pod)
    for name in (*names.values(), f"{registry.host}/pause:1"):
        machine.cri.remove_image(name)
    machine.collect_garbage()
    assert machine.mounts() == []
    assert not list((machine.snapshots_root / "mapped").iterdir())


def test_a_containerd_that_knows_no_capabilities_changes_owners_itself_and_the_log_says_what_that_costs(
    lab: Lab, registry: Registry, tmp_path: Path
) -> None:
    """Else owners would be mapped twice."""
    image = f"{registry.host}/base:latest"
    with node(tmp_path / "n", release(lab, "1.7"), registry.host, f"{registry.host}/pause:1") as machine:
        machine.cri.pull(image)
        mapped = ("--remap-labels", "--uidmap", MAP, "--gidmap", MAP)
        told = machine.ctr("run", "--snapshotter", "lazyfs", *mapped, image, "users", "sh", "-c", LOOK)
        assert told.split() == SEEN
        assert machine.log("snapshotter").count("announce capabilities") == 1
