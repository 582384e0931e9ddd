"""Podman's containers in user namespaces on our layer store: owners are shifted, and nothing is copied."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.images import build_image
from tests.support.lab import Lab
from tests.support.lab_build import run
from tests.support.lab_foreign import serve_foreign
from tests.support.mount_server import wait_until
from tests.support.mounts import mounts_below, unmount_lazily
from tests.support.podman_node import A_START, ADD, Publish, publishing, running_node, serving
from tests.support.published import index_of, put
from tests.support.registry import Registry
from tests.support.runner import LazyfsRunner
from tests.support.tars import file, tar

FIRST, OTHER, COUNT = 100_000, 500_000, 65_536
STAT = "stat -c %u:%g:%a /etc /etc/shadow /var/mail /usr/bin/passwd /var/cache/apt/archives/partial"
STATS = ["0:0:755", "0:42:640", "0:8:2775", "0:0:4755", "42:0:700"]


@pytest.fixture(scope="module")
def publish(lab: Lab, publisher: LazyfsRunner) -> Iterator[Publish]:
    with publishing(lab, publisher) as publish:
        yield publish


def mapped(first: int) -> list[str]:
    """The options of `podman run` for a namespace whose user 0 is `first`."""
    return ["--uidmap", f"0:{first}:{COUNT}", "--gidmap", f"0:{first}:{COUNT}"]


def in_container(reference: str, first: int, *command: str) -> list[str]:
    options = ["--rm", "--network", "none", "--pull", "never", *mapped(first)]
    return ["run", *options, reference, *command]


def clones_below(top: Path) -> list[str]:
    """The idmapped mounts there."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in lines if f" {top}/" in line and "idmapped" in line.split()[5]]


@pytest.mark.parametrize("driver", ["erofs", "fuse"])
def test_a_container_in_a_user_namespace_starts_lazily(lab, publish, tmp_path, driver):
    with running_node(tmp_path, lab, publish("python"), "--driver", driver) as node:
        name = node.name("python")
        node.podman.pull(name)
        layers = node.podman.layers()
        assert node.podman.run(*in_container(name, FIRST, "python3", "-c", ADD, "20", "22")).stdout == "42\n"
        assert node.moved < A_START
        telling = f"cat /proc/self/uid_map; {STAT}"
        said = node.podman.run(*in_container(name, FIRST, "sh", "-c", telling)).stdout
        assert said.split() == ["0", str(FIRST), str(COUNT), *STATS]
        changing = "echo new >>/etc/passwd && tail -n 1 /etc/passwd && chown 7:7 /etc && stat -c %u /etc"
        said = node.podman.run(*in_container(name, FIRST, "sh", "-c", changing)).stdout
        assert said.split() == ["new", "7"]
        assert node.podman.layers() == layers  # none was copied for its owners
        assert len(clones_below(node.daemon.root)) == len(layers)
        assert node.podman.rmi(name) == ""
        wait_until(lambda: not node.mounted())
        assert node.daemon.complaints() == []
    assert mounts_below(tmp_path) == []


@pytest.mark.parametrize("version", ["4.3", "5.4"])
def test_either_podman_shifts_the_owners_of_an_image_in_another_lazy_format(lab, tmp_path, version):
    with (
        serve_foreign(lab, "estargz-optimized") as reference,
        serving(tmp_path, lab, reference.partition("/")[0], version, "--trust-index") as (daemon, engine),
    ):
        engine.pull(reference)
        layers = engine.layers()
        assert len(daemon.ask("mounts")) == len(layers)
        said = engine.run(*in_container(reference, FIRST, "sh", "-c", STAT)).stdout
        assert said.split() == STATS
        assert engine.layers() == layers
        assert daemon.complaints() == []


def owners(root: Path) -> dict[str, tuple[int, int, int]]:
    """Owner, group and mode of all that is below a directory."""
    found = {path.relative_to(root): path.lstat() for path in (root, *root.rglob("*"))}
    return {str(path): (stat.st_uid, stat.st_gid, stat.st_mode) for path, stat in found.items()}


def shifted(found: dict[str, tuple[int, int, int]], first: int) -> dict[str, tuple[int, int, int]]:
    return {path: (uid + first, gid + first, mode) for path, (uid, gid, mode) in found.items()}


def test_containers_with_different_mappings_and_none_see_an_image_each_by_its_own(
    lab, publish, tmp_path, lazyfs
):
    with running_node(tmp_path, lab, publish("base")) as node:
        name = node.name("base")
        node.podman.pull(name)
        plain = owners(node.root("base"))
        for first in (FIRST, OTHER, FIRST):
            words = ["create", "--network", "none", "--pull", "never", *mapped(first), name, "true"]
            container = node.podman.run(*words).stdout.strip()
            root = Path(node.podman.run("mount", container).stdout.strip())
            seen = owners(root)
            assert {path: seen[path] for path in plain} == shifted(plain, first)
            assert (root / "etc/debian_version").read_bytes() == (
                node.root("base") / "etc/debian_version"
            ).read_bytes()
            told = json.loads(lazyfs("explain", "--json", "--daemon", node.daemon.socket, root).stdout)
            assert told["image"] == name
        assert owners(node.root("base")) == plain
        assert node.daemon.complaints() == []


def test_an_image_of_many_layers_is_mounted_by_a_process_of_its_own_and_shifted_too(lab, tmp_path):
    """The options of its overlay are longer than a page."""
    count = 60
    image = build_image([tar(file(b"d/f%d" % n, b"%d" % n, uid=n, gid=n + 7)) for n in range(count)])
    with Registry() as registry, running_node(tmp_path, lab, registry) as node:
        registry.push("app", image, tag="latest")
        put(registry, "app", index_of(image))
        node.podman.pull(node.name("app"))
        assert len(node.mounted()) == count
        words = ["create", "--network", "none", *mapped(FIRST), node.name("app"), "/none"]
        container = node.podman.run(*words).stdout.strip()
        root = Path(node.podman.run("mount", container).stdout.strip())
        found = {path.name: path.stat() for path in (root / "d").iterdir()}
        seen = {name: (stat.st_uid - FIRST, stat.st_gid - FIRST) for name, stat in found.items()}
        assert seen == {f"f{n}": (n, n + 7) for n in range(count)}
        assert (root / "d/f5").read_bytes() == b"5"
        node.podman.run("rm", container)
        assert node.podman.rmi(node.name("app")) == ""
        wait_until(lambda: not node.mounted())


@pytest.mark.parametrize("driver", ["erofs", "fuse"])
def test_it_goes_on_when_the_daemon_dies_and_the_next_one_shifts_again(lab, publish, tmp_path, driver):
    with running_node(tmp_path, lab, publish("python"), "--driver", driver) as node:
        name = node.name("python")
        node.podman.pull(name)
        first, *rest = in_container(name, FIRST, "python3", "-i")
        with node.podman.talk(first, "-i", *rest) as process:
            process.stdin.write("print(6 * 7)\n")
            process.stdin.flush()
            assert process.stdout.readline() == "42\n"
            node.daemon.kill_worker()
            process.stdin.write("import os, sqlite3; print(os.stat(sqlite3.__file__).st_uid)\n")
            process.stdin.close()
            assert process.stdout.readline() == "0\n"
        node.daemon.ask("mounts")  # there is a next one
        assert clones_below(node.daemon.root) == []
        assert node.podman.run(*in_container(name, FIRST, "sh", "-c", STAT)).stdout.split() == STATS
        assert clones_below(node.daemon.root) != []
    assert mounts_below(tmp_path) == []


WITH_IDS = [
    *("unshare", "--mount", "--propagation", "slave", "sh", "-c"),
    'mount -t overlay overlay -o "lowerdir=$0:/etc" /etc && exec "$@"',
]
"""As if /etc had the files of the directory that follows, too."""


@pytest.fixture
def shared(tmp_path) -> Iterator[Path]:
    """A directory where other mount namespaces see what is mounted."""
    run("mount", "--bind", str(tmp_path), str(tmp_path))
    try:
        run("mount", "--make-shared", str(tmp_path))
        yield tmp_path
    finally:
        for point in mounts_below(tmp_path):
            unmount_lazily(point)


def test_a_namespace_that_is_made_to_fit_an_image_has_all_its_owners(lab, shared):
    image = build_image([tar(file(b"a", uid=30_000)), tar(file(b"b", gid=40_000))])
    ids = shared / "ids"
    ids.mkdir()
    for name in ("subuid", "subgid"):
        (ids / name).write_text(f"containers:{FIRST}:1000000\n")
    with Registry() as registry, running_node(shared, lab, registry) as node:
        registry.push("app", image, tag="latest")
        put(registry, "app", index_of(image))
        node.podman.pull(node.name("app"))
        assert len(node.mounted()) == 2
        words = ["create", "--network", "none", "--userns=auto", node.name("app"), "/none"]
        container = subprocess.run(
            [*WITH_IDS, ids, *node.podman.command(*words)],
            env=node.podman.environment(),
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        root = Path(node.podman.run("mount", container).stdout.strip())
        assert (root / "a").stat().st_uid == FIRST + 30_000
        assert (root / "b").stat().st_gid == FIRST + 40_000
