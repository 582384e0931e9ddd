"""The snapshotter's calls, with a daemon that is a few directories: lazy layers, mounts, wrong calls."""

import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trio

from lazyfs.errors import ConfigError
from lazyfs.oci.chain import chain_name
from lazyfs.snapshotter.labels import REF
from lazyfs.snapshotter.run import run_snapshotter
from tests.support.containers import until
from tests.support.snapshot_client import SnapshotClient, status
from tests.support.snapshotters import (
    FakeChains,
    chain_id,
    cri_labels,
    digest,
    served,
    stargz_labels,
)

ACTIVE, COMMITTED = 2, 3
APP = [digest("base"), digest("tools"), digest("app")]
OTHER = [digest("base"), digest("other")]
NAME, BASE_NAME = chain_name(APP), chain_name(APP[:1])


@pytest.fixture
def chains(tmp_path: Path) -> FakeChains:
    return FakeChains(tmp_path / "daemon", {"app": APP, "other": OTHER})


@pytest.fixture
def client(tmp_path: Path, chains: FakeChains) -> Iterator[SnapshotClient]:
    with served(tmp_path / "root", chains) as client:
        yield client


def hit(client: SnapshotClient, ref: str, parent: str) -> str:
    """The name of the snapshot that containerd takes after ALREADY_EXISTS (its `metadata/snapshot.go`)."""
    found = client.list(f'labels."{REF}"=={ref},parent=="{parent}"')
    assert all(info.labels[REF] == ref and info.parent == parent for info in found)
    return str(next(info.name for info in found if info.kind == COMMITTED))


def pull(
    client: SnapshotClient, image: str, layers: list[str], namespace: str = "ns", labels=cri_labels
) -> str:
    """Do what an unpacker does while every layer is lazy; the top's name."""
    parent = ""
    for depth in range(1, len(layers) + 1):
        with status("ALREADY_EXISTS"):
            client.prepare(f"{namespace}/{image}/{depth}", parent, labels(image, layers, depth))
        parent = hit(client, chain_id(layers[:depth]), parent)
    return parent


def unpack(client: SnapshotClient, image: str, layers: list[str], namespace: str = "ns") -> str:
    """The same while none is."""
    parent = ""
    for depth in range(1, len(layers) + 1):
        labels = cri_labels(image, layers, depth)
        key, name = f"{namespace}/extract {image} {depth}", f"{namespace}/{image}/{depth}"
        assert client.prepare(key, parent, labels)
        client.commit(name, key, labels)
        parent = name
    return parent


@pytest.mark.parametrize("labels", [cri_labels, stargz_labels])
def test_a_lazy_image_is_committed_layer_by_layer_and_mounts_nothing(client, chains, labels):
    top = pull(client, "app", APP, labels=labels)
    infos = {info.name: info for info in client.list()}
    assert len(infos) == 3
    assert infos[top].labels == labels("app", APP, 3)
    assert {client.usage(name).size for name in infos} == {0}
    assert {client.usage(name).inodes for name in infos} == {0}
    assert [question for question in chains.asked if not question.startswith("keep")] == [
        f"assess app {depth}" for depth in (1, 2, 3)
    ]


def test_all_containers_of_an_image_share_one_mount_that_goes_with_the_last(client, chains):
    top = pull(client, "app", APP)
    lowers = set()
    for number in range(3):
        (mount,) = client.prepare(f"container {number}", top)
        lowers.add(mount.options[-1])
    client.view("view", top)
    assert lowers == {f"lowerdir={chains.home / NAME}"}
    assert chains.mounted == {NAME}
    for key in ("container 0", "container 2", "view"):
        client.remove(key)
    assert chains.mounted == {NAME}
    client.remove("container 1")
    assert chains.mounted == set()
    client.prepare("again", top)
    assert chains.mounted == {NAME}


def test_intermediate_layers_are_mounted_for_who_asks_for_them(client, chains):
    pull(client, "app", APP)
    (mount,) = client.view("look", "ns/app/1")
    assert (mount.type, mount.source, list(mount.options)) == (
        *("bind", str(chains.home / BASE_NAME)),
        ["ro", "rbind"],
    )
    assert chains.mounted == {BASE_NAME}


def test_layers_unpacked_upon_a_lazy_one_use_its_mount_until_they_are_committed(client, chains):
    top = pull(client, "app", APP)
    (mount,) = client.prepare("extract", top, {REF: digest("more")})
    assert mount.options[-1] == f"lowerdir={chains.home / NAME}"
    assert chains.mounted == {NAME}
    client.commit("more", "extract", {REF: digest("more")})
    assert chains.mounted == set()
    (mount,) = client.prepare("container", "more")
    (extracted,) = set(mount.options[-1].removeprefix("lowerdir=").split(":")) - {str(chains.home / NAME)}
    assert extracted.endswith("/fs")
    assert mount.options[-1].endswith(f":{chains.home / NAME}")


def test_no_layer_is_lazy_upon_one_that_is_not(client, chains):
    chains.images.clear()
    client.prepare("key", "", cri_labels("app", APP, 1))
    client.commit("base", "key", cri_labels("app", APP, 1))
    chains.images["app"] = APP
    assert client.prepare("next", "base", cri_labels("app", APP, 2))
    assert "assess app 2" not in chains.asked


def test_another_image_with_the_same_lower_layers_shares_them(client, chains):
    pull(client, "app", APP)
    top = pull(client, "other", OTHER, "ns2")
    assert client.names() == ["ns/app/1", "ns/app/2", "ns/app/3", "ns2/other/2"]
    assert client.stat(top).parent == "ns/app/1"


def test_a_mount_is_ordered_by_whichever_image_is_still_there(client, chains):
    pull(client, "app", APP)
    chains.images["renamed"] = APP
    top = pull(client, "renamed", APP, "ns2")
    for gone in ("app", "renamed"):
        layers = chains.images.pop(gone)
        client.prepare(f"without {gone}", top)
        client.remove(f"without {gone}")
        chains.images[gone] = layers


def test_a_chain_id_that_another_layer_has_already_is_not_believed(client, chains):
    """A configuration can claim any diffID: what it stands for must not be taken from another image."""
    top = pull(client, "app", APP)
    evil = [digest("evil"), APP[1], APP[2]]
    chains.images["evil"] = evil
    labels = cri_labels("evil", evil, 1) | {REF: chain_id(APP[:1])}
    assert client.prepare("ns/evil", "", labels)
    assert client.stat("ns/evil").kind == ACTIVE
    assert hit(client, chain_id(APP[:1]), "") == "ns/app/1"
    assert client.stat(top).labels["containerd.io/snapshot/cri.image-ref"] == "app"


def test_the_tag_that_names_other_layers_by_now_is_not_mounted(client, chains):
    top = pull(client, "app", APP)
    chains.images["app"] = [digest("new"), *APP[1:]]
    with status("UNAVAILABLE") as said:
        client.prepare("container", top)
    assert "other layers" in said[0]
    assert client.names("kind==active") == []


def test_an_unpacked_chain_beside_a_lazy_one_does_not_get_in_its_way(client, chains):
    """Unpacked in one namespace, lazy in another: the chainIDs are equal, the parents are not."""
    images = dict(chains.images)
    chains.images.clear()
    unpack(client, "app", APP, "first")
    chains.images.update(images)
    top = pull(client, "app", APP, "second")
    assert top == "second/app/3"
    assert client.stat(top).parent == "second/app/2"


def test_the_daemon_is_asked_for_an_index_when_the_top_layer_is_unpacked(client, chains):
    chains.images.clear()
    unpack(client, "app", APP)
    client.stat("ns/app/3")
    assert [question for question in chains.asked if question.startswith("index")] == ["index app 3"]


def test_without_labels_nobody_asks_the_daemon(client, chains):
    client.prepare("key", "", {REF: chain_id(APP[:1])})
    client.commit("layer", "key", {REF: chain_id(APP[:1])})
    client.prepare("container", "layer")
    assert chains.asked == ["keep"]


def test_without_the_daemon_layers_are_ordinary(client, chains):
    chains.away = True
    unpack(client, "app", APP)
    assert client.prepare("container", "ns/app/3")


def test_without_the_daemon_a_lazy_container_has_to_wait(client, chains):
    top = pull(client, "app", APP)
    client.prepare("running", top)
    chains.away = True
    with status("UNAVAILABLE") as said:
        client.prepare("container", top)
    assert "nobody answers" in said[0]
    with status("UNAVAILABLE"):
        client.mounts("running")
    assert client.names("kind==active") == ["running"]
    chains.away = False
    assert client.prepare("container", top) != client.mounts("running")


def test_mounts_that_were_not_released_are_later(client, chains):
    top = pull(client, "app", APP)
    client.prepare("one", top)
    client.prepare("base", "ns/app/1")
    chains.away = True
    client.remove("one")
    assert chains.mounted == {NAME, BASE_NAME}
    chains.away = False
    wait_for(lambda: chains.mounted == {BASE_NAME})


def test_at_the_start_only_mounts_in_use_are_kept(tmp_path, chains):
    with served(tmp_path / "root", chains) as client:
        top = pull(client, "app", APP)
        client.prepare("container", top)
    chains.mounted.update({BASE_NAME, digest("whatever")})
    with served(tmp_path / "root", chains) as client:
        wait_for(lambda: chains.mounted == {NAME})
        assert client.mounts("container")


def wait_for(condition) -> None:
    """Wait for what goes on in the background."""

    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_mounts_may_be_asked_for_any_time(client, chains):
    top = pull(client, "app", APP)
    first = client.prepare("container", top)
    chains.mounted.clear()
    assert client.mounts("container") == first
    assert chains.mounted == {NAME}
    with status("FAILED_PRECONDITION"):
        client.mounts(top)
    with status("NOT_FOUND"):
        client.mounts("absent")


def test_the_root_has_the_attributes_of_its_parents(client, chains, tmp_path):
    top = pull(client, "app", APP)
    client.view("look", top)
    root = chains.home / NAME
    root.chmod(0o1770)
    (mount,) = client.prepare("container", top)
    (upper,) = (Path(o.removeprefix("upperdir=")) for o in mount.options if o.startswith("upperdir="))
    assert upper.stat().st_mode == root.stat().st_mode
    assert upper.stat().st_mtime_ns == root.stat().st_mtime_ns


def test_usage_counts_blocks_and_inodes_once(client):
    (mount,) = client.prepare("key")
    upper = Path(mount.source)
    empty = client.usage("key")
    assert empty.inodes == 1
    (upper / "dir").mkdir()
    (upper / "dir" / "file").write_bytes(b"x" * 10_000)
    (upper / "dir" / "link").hardlink_to(upper / "dir" / "file")
    (upper / "sparse").touch()
    os.truncate(upper / "sparse", 1 << 30)
    grown = client.usage("key")
    assert grown.inodes == 4
    assert 10_000 <= grown.size - empty.size < 100_000
    client.commit("layer", "key")
    assert client.usage("layer") == grown
    (upper / "dir" / "file").unlink()
    assert client.usage("layer") == grown
    with status("NOT_FOUND"):
        client.usage("absent")


def test_cleanup_removes_what_belongs_to_nobody(tmp_path, chains):
    folder = tmp_path / "root" / "snapshots"
    with served(tmp_path / "root", chains) as client:
        client.prepare("one")
        client.prepare("two")
        client.remove("one")
        assert [path.name for path in folder.iterdir()] == ["2"]
        (folder / "1" / "fs" / "file").mkdir(parents=True)
        client.cleanup()
        assert [path.name for path in folder.iterdir()] == ["2"]
    (folder / "1000" / "fs").mkdir(parents=True)
    with served(tmp_path / "root", chains) as client:
        assert [path.name for path in folder.iterdir()] == ["2"]
        client.prepare("three")
        assert client.names() == ["three", "two"]


@pytest.mark.expect_log("cannot remove a snapshot's directory: Device or resource busy; it is tried again")
def test_a_directory_that_stays_keeps_nobody_from_starting(tmp_path, chains):
    folder = tmp_path / "root" / "snapshots"
    for number in (7, 8, 9):
        (folder / str(number) / "fs").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "test", folder / "8" / "fs"], check=True)
    try:
        with served(tmp_path / "root", chains) as client:
            assert [path.name for path in folder.iterdir()] == ["8"]
            with status("RESOURCE_EXHAUSTED"):
                client.cleanup()
            client.prepare("key")
    finally:
        subprocess.run(["umount", folder / "8" / "fs"], check=True)
    with served(tmp_path / "root", chains):
        assert [path.name for path in folder.iterdir()] == ["10"]


def test_commit_upon_a_parent(client):
    client.prepare("base-key")
    client.commit("base", "base-key")
    client.prepare("key")
    with status("NOT_FOUND"):
        client.commit("layer", "key", parent="absent")
    client.commit("layer", "key", parent="base")
    assert client.stat("layer").parent == "base"
    client.prepare("upper", "base")
    with status("INVALID_ARGUMENT"):
        client.commit("other", "upper", parent="layer")
    client.commit("other", "upper", parent="base")


def test_wrong_calls(client):
    client.prepare("active")
    client.view("view")
    client.prepare("to be committed")
    client.commit("layer", "to be committed")
    for code, call in {
        "NOT_FOUND": lambda: client.prepare("key", "absent"),
        "INVALID_ARGUMENT": lambda: client.prepare("key", "active"),
        "ALREADY_EXISTS": lambda: client.commit("layer", "active"),
        "FAILED_PRECONDITION": lambda: client.commit("other", "view"),
    }.items():
        with status(code):
            call()
    with status("NOT_FOUND"):
        client.commit("other", "absent")
    with status("FAILED_PRECONDITION"):
        client.commit("other", "layer")
    with status("INVALID_ARGUMENT"):
        client.prepare("")
    with status("INVALID_ARGUMENT"):
        client.prepare("key", "", {"x" * 2000: "y" * 2097})
    client.prepare("key", "", {"x" * 2000: "y" * 2096})
    with status("NOT_FOUND"):
        client.stat("other")
    assert client.names() == ["active", "key", "layer", "view"]


def test_long_lists_come_in_pages_of_a_hundred_and_a_mebibyte(client):
    labels = {f"containerd.io/snapshot/{n}": "x" * 4000 for n in range(10)}
    for number in range(130):
        client.prepare(f"key {number}", "", labels if number < 40 else {})
    assert [len(page) for page in client.pages()] == [25, 100, 5]


def test_a_root_has_one_snapshotter(tmp_path, chains):
    with served(tmp_path / "root", chains), pytest.raises(ConfigError, match="another snapshotter"):
        trio.run(run_snapshotter, tmp_path / "root", tmp_path / "other.sock", chains, chains)


def test_the_socket_is_ours_alone(client, tmp_path):
    assert (tmp_path / "root.sock").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "root").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("root", ["a:b", "a,b", "a\\b"])
def test_paths_that_overlayfs_cannot_take_are_refused(root, tmp_path, chains):
    with pytest.raises(ConfigError, match="overlayfs"):
        trio.run(run_snapshotter, tmp_path / root, tmp_path / "sock", chains, chains)


def test_a_root_that_holds_no_snapshots_is_refused(tmp_path, chains):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "snapshots").touch()
    with pytest.raises(ConfigError, match="cannot keep snapshots there: cannot make"):
        trio.run(run_snapshotter, tmp_path / "root", tmp_path / "sock", chains, chains)


def test_a_database_of_something_else_is_refused(tmp_path, chains):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "snapshots.db").write_bytes(b"no database" * 1000)
    with pytest.raises(ConfigError, match=r"snapshots\.db"):
        trio.run(run_snapshotter, tmp_path / "root", tmp_path / "sock", chains, chains)


def test_a_socket_that_cannot_be_is_refused(tmp_path, chains):
    with pytest.raises(ConfigError, match="107 bytes"):
        trio.run(run_snapshotter, tmp_path / "root", tmp_path / ("s" * 120), chains, chains)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot listen"):
        trio.run(run_snapshotter, tmp_path / "root", tmp_path / "file" / "sock", chains, chains)


def test_ordinary_snapshots_do_not_wait_for_a_daemon_that_is_slow_to_unmount(client, chains):
    client.prepare("container", pull(client, "app", APP))
    chains.may_release.clear()
    with ThreadPoolExecutor() as beside:
        removed = beside.submit(client.remove, "container")
        try:
            until(lambda: f"release {NAME}" in chains.asked, "the daemon is asked")
            assert client.prepare("ordinary", "")
            assert not removed.done()
        finally:
            chains.may_release.set()
        removed.result()
