"""Podman on our layer store: images pulled without their layers, run, pushed, removed; daemons that die."""

import json
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from msgspec.structs import replace

from indexer.build import BuiltToc
from indexer.digest import sha256_digest
from tests.support.containerd_images import push_layout_files
from tests.support.images import build_image, build_image_from_layers, compress
from tests.support.lab import Lab, manifest_digest
from tests.support.lab_build import run
from tests.support.lab_foreign import serve_foreign
from tests.support.lab_registry import docker_registry
from tests.support.mount_server import wait_until
from tests.support.mounts import mounts_below
from tests.support.oracle import compare_trees
from tests.support.podman_node import A_START, Node, Publish, publishing, running_node, serving
from tests.support.published import index_of, put
from tests.support.registry import Registry
from tests.support.runner import LazyfsRunner
from tests.support.service import Daemon, running_daemon
from tests.support.tars import directory, file, tar, whiteout


@pytest.fixture(scope="module")
def publish(lab: Lab, publisher: LazyfsRunner) -> Iterator[Publish]:
    with publishing(lab, publisher) as publish:
        yield publish


@pytest.fixture
def node(lab, publish, tmp_path) -> Iterator[Node]:
    with running_node(tmp_path, lab, publish("python")) as node:
        yield node


def layers_of(lab: Lab, name: str) -> list[str]:
    blobs = lab.image(name) / "blobs"
    manifest = json.loads((blobs / manifest_digest(lab.image(name)).replace(":", "/")).read_text())
    return [layer["digest"] for layer in manifest["layers"]]


@pytest.mark.parametrize("driver", ["erofs", "fuse"])
def test_an_image_is_pulled_without_its_layers_runs_and_goes(lab, publish, tmp_path, driver):
    with running_node(tmp_path, lab, publish("python"), "--driver", driver) as node:
        assert node.podman.pull(node.name("python")) == ""
        assert node.python("20", "22") == "42"
        assert node.moved < A_START
        assert len(node.mounted()) == len(node.podman.layers()) > 1
        assert {mount["driver"] for mount in node.mounted()} == {driver}
        assert node.podman.rmi(node.name("python")) == ""
        wait_until(lambda: not node.mounted())
        assert node.daemon.complaints() == []
    assert mounts_below(tmp_path) == []


def test_explain_tells_of_an_image_whose_layers_are_mounted_alone(node, lazyfs):
    name = node.name("python")
    node.podman.pull(name)
    assert node.python("20", "22") == "42"
    words = ("explain", "--json", "--daemon", node.daemon.socket)
    (one,) = json.loads(lazyfs(*words).stdout)
    assert one["image"] == name
    assert {mount["path"] for mount in one["mounts"]} == {mount["path"] for mount in node.mounted()}
    assert all(mount["alone"] for mount in one["mounts"])
    assert len(one["layers"]) == len(one["mounts"]) > 1
    assert one["traffic"]["demand"]["bytes"] > 0
    assert json.loads(lazyfs(*words, node.root("python")).stdout)["digest"] == one["digest"]


@pytest.mark.parametrize("name", ["oddities", "base"])
def test_podman_shows_what_the_layers_hold(lab, publish, tmp_path, unpacked, name):
    with running_node(tmp_path, lab, publish(name)) as node:
        node.podman.pull(node.name(name))
        layers = layers_of(lab, name)
        assert {mount["layer"] for mount in node.mounted()} == {
            each for each in layers if layers.count(each) == 1
        }
        # Overlayfs knows no hard links between layers, and counts names that are hidden.
        assert (
            compare_trees(unpacked(name), node.root(name), ignore=["hard links", "nlink"], without=[b""])
            == []
        )


def test_a_container_goes_on_when_the_daemon_dies_and_starts_again(node):
    node.podman.pull(node.name("python"))
    command = ["run", "--rm", "--network", "none", "-i", node.name("python"), "python3", "-i"]
    with node.podman.talk(*command) as process:
        process.stdin.write("print(6 * 7)\n")
        process.stdin.flush()
        assert process.stdout.readline() == "42\n"
        node.daemon.kill_worker()
        process.stdin.write(
            "import sqlite3; print(sqlite3.connect(':memory:').execute('select 7').fetchone())\n"
        )
        process.stdin.close()
        assert process.stdout.readline() == "(7,)\n"
    assert node.python("1", "2") == "3"


def test_after_a_reboot_an_image_is_what_it_was_whatever_became_of_its_tag(lab, publish, tmp_path):
    registry = publish("base")
    other = build_image([tar(file(b"other"))])
    with ExitStack() as stack:
        node = stack.enter_context(running_node(tmp_path, lab, registry))
        node.podman.pull(node.name("base"))
        before = {mount["name"] for mount in node.mounted()}
        node.daemon.stop()
        assert mounts_below(node.store) == []
        registry.push("base", other, tag="latest")
        try:
            node.daemon.start()
            assert node.podman.start(node.name("base"), "cat", "/etc/debian_version").startswith("12")
            assert {mount["name"] for mount in node.mounted()} == before
        finally:
            push_layout_files(registry, "base", lab.image("base"))


def test_a_layer_that_claims_to_be_another_images_is_not_taken_for_it(lab, tmp_path):
    """Podman 4 knows layers by their diffIDs, and believes us."""
    good, evil = tar(directory(b"d"), file(b"d/x", b"good")), tar(directory(b"d"), file(b"d/x", b"evil"))
    layer = compress(evil, "gzip")
    claim = build_image_from_layers([layer], [sha256_digest(good)], process={"Cmd": ["evil"]})

    def lie(built: BuiltToc) -> BuiltToc:
        header = replace(built.toc.header, diff_id=sha256_digest(good))
        return replace(built, toc=replace(built.toc, header=header))

    with Registry() as registry, serving(tmp_path, lab, registry.host, "4.3") as (daemon, engine):
        node = Node(registry, daemon, engine, tmp_path / "store")
        registry.push("evil", claim, tag="latest")
        put(registry, "evil", index_of(claim, lie))
        registry.push("good", build_image([good]), tag="latest")
        engine.pull(node.name("evil"))
        engine.pull(node.name("good"))
        assert (node.root("evil") / "d/x").read_bytes() == b"evil"
        assert (node.root("good") / "d/x").read_bytes() == b"good"


def test_an_image_that_came_lazily_by_an_index_made_here_can_be_pushed_and_saved(lab, node, tmp_path):
    here = LazyfsRunner(home=tmp_path / "home", cache_dir=node.daemon.cache)
    here("index", "--index", "local", node.name("python"))
    node.podman.pull(node.name("python"))
    assert len(node.mounted()) == len(layers_of(lab, "python"))
    node.podman.run(
        "save", "--quiet", "--format", "oci-dir", "--output", tmp_path / "saved", node.name("python")
    )
    saved = {path.name for path in (tmp_path / "saved").rglob("*") if path.is_file()}
    assert {f"sha256:{name}" for name in saved}.issuperset(layers_of(lab, "python"))
    with docker_registry(tmp_path / "registry") as address:
        node.podman.run("push", "--quiet", "--tls-verify=false", node.name("python"), f"{address}/copy:1")
        run(
            "skopeo",
            "--insecure-policy",
            "copy",
            "--quiet",
            "--src-tls-verify=false",
            f"docker://{address}/copy:1",
            f"dir:{tmp_path / 'copied'}",
        )
    assert {f"sha256:{path.name}" for path in (tmp_path / "copied").iterdir()}.issuperset(
        layers_of(lab, "python")
    )


def test_an_image_without_an_index_is_pulled_as_usual(lab, tmp_path):
    layers = [tar(directory(b"d"), file(b"d/a", b"one"), file(b"d/b", b"two")), tar(whiteout(b"d/a"))]
    with Registry() as registry, running_node(tmp_path, lab, registry) as node:
        registry.push("app", build_image(layers), tag="latest")
        assert node.podman.pull(node.name("app")) == ""
        assert node.mounted() == []
        assert [path.name for path in (node.root("app") / "d").iterdir()] == ["b"]
        assert node.daemon.complaints() == []


@pytest.mark.parametrize(
    ("version", "kind", "flags", "lazy"),
    [
        ("4.3", "estargz-optimized", ["--trust-index"], True),
        ("5.4", "estargz-optimized", [], True),
        ("5.4", "zstd-chunked", [], True),
        ("4.3", "estargz-optimized", [], False),  # nobody has seen that its diffID is its own
        ("4.3", "zstd-chunked-old", ["--trust-index"], False),  # nobody tells how large it is uncompressed
    ],
)
def test_images_in_other_lazy_formats_need_no_index_of_ours(lab, tmp_path, version, kind, flags, lazy):
    with (
        serve_foreign(lab, kind) as reference,
        serving(tmp_path, lab, reference.partition("/")[0], version, *flags) as (daemon, engine),
    ):
        assert engine.pull(reference) == ""
        assert len(daemon.ask("mounts")) == (len(engine.layers()) if lazy else 0)
        assert engine.start(reference, "cat", "/etc/debian_version").strip()
        assert daemon.complaints() == []


def test_a_store_that_cannot_be_where_it_is_to_be_ends_the_daemon_with_a_line(lazyfs, tmp_path):
    (tmp_path / "file").touch()
    options = [
        "--root",
        tmp_path / "root",
        "--socket",
        tmp_path / "socket",
        "--layer-store",
        tmp_path / "file",
    ]
    done = lazyfs("daemon", *options, exit_code=71)
    assert done.stderr == f"lazyfs: cannot use {tmp_path}/file: File exists\n"


def test_a_disk_that_is_mounted_where_the_store_is_to_be_stays(lazyfs, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    run("mount", "-t", "tmpfs", "a-disk", str(disk))
    try:
        options = ["--root", tmp_path / "root", "--socket", tmp_path / "socket", "--layer-store", disk]
        done = lazyfs("daemon", *options, exit_code=73)
        assert f"{disk} has a-disk (tmpfs) mounted on it" in done.stderr
        assert mounts_below(tmp_path) == [disk]
    finally:
        run("umount", str(disk))


@pytest.mark.parametrize("flags", [[], ["--layer-store", "another"]])
def test_a_store_that_a_killed_daemon_left_goes_where_the_next_one_has_none(tmp_path, flags):
    store, next_store = tmp_path / "store", [str(tmp_path / flag) for flag in flags[1:]]
    Daemon(tmp_path / "daemon", flags=["--layer-store", str(store)]).start().kill()
    assert store in mounts_below(tmp_path)
    with running_daemon(tmp_path / "daemon", flags=[*flags[:1], *next_store]):
        assert [*store.iterdir()] == []
        assert store not in mounts_below(tmp_path)
    assert mounts_below(tmp_path) == []


def test_a_daemon_killed_the_moment_it_has_mounted_its_store_leaves_one_that_the_next_knows(tmp_path):
    store = tmp_path / "store"
    daemon = Daemon(tmp_path / "daemon", flags=["--layer-store", str(store)])
    daemon.launch()
    wait_until(lambda: store in mounts_below(store), every_s=0)
    daemon.kill()
    assert store in mounts_below(tmp_path)
    with running_daemon(tmp_path / "daemon"):
        assert mounts_below(store) == []


def test_what_is_not_there_is_not_there_and_nothing_can_be_written(lab, node):
    name = b64encode(node.name("python").encode()).decode()
    digest = layers_of(lab, "python")[0]
    assert [*node.store.iterdir(), *(node.store / name).iterdir()] == []
    for path in ("x", f"{name}/x", f"{name}/sha256:{'0' * 64}", f"{name}/{digest}/x", f"{name}/{digest}/use"):
        assert not (node.store / path).exists(), path
    for make in (Path.mkdir, Path.touch):
        with pytest.raises(OSError, match="Read-only"):
            make(node.store / name / digest / "new")
    info = json.loads((node.store / name / digest / "info").read_text())
    assert info["compressed-diff-digest"] == digest
    assert (node.store / name / digest / "diff").is_dir()
