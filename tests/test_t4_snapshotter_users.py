"""The snapshotter's mounts for containers with user namespaces."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from lazyfs.oci.chain import chain_name
from lazyfs.snapshotter.id_mapping import GIDS, SAME, UIDS, mapping_of
from lazyfs.snapshotter.labels import REF
from lazyfs.snapshotter.mapped_lowers import MappedLowers
from lazyfs.snapshotter.model import BadSnapshotCall, SnapshotInUse
from tests.support.mount_server import wait_until
from tests.support.mounts import mounts_below
from tests.support.snapshot_client import SnapshotClient, status
from tests.support.snapshotters import FakeChains, chain_id, cri_labels, digest, served

APP = [digest("base"), digest("app")]
ASKED = {UIDS: "0:100000:65536", GIDS: "0:200000:65536"}
SAID = ["uidmap=0:100000:65536", "gidmap=0:200000:65536"]


@pytest.fixture
def chains(tmp_path: Path) -> FakeChains:
    return FakeChains(tmp_path / "daemon", {"app": APP})


@pytest.fixture
def client(tmp_path: Path, chains: FakeChains) -> Iterator[SnapshotClient]:
    with served(tmp_path / "root", chains) as client:
        yield client


def lazy(client: SnapshotClient) -> str:
    """Pull the image while all of it is lazy; the name of its top."""
    parent = ""
    for depth in range(1, len(APP) + 1):
        with status("ALREADY_EXISTS"):
            client.prepare(f"ns/app/{depth}", parent, cri_labels("app", APP, depth))
        (found,) = client.list(f'labels."{REF}"=={chain_id(APP[:depth])}')
        parent = found.name
    return parent


def unpacked(client: SnapshotClient, name: str, parent: str = "") -> str:
    client.prepare(f"{name}-key", parent)
    client.commit(name, f"{name}-key")
    return name


def options(mounts, start=""):
    (mount,) = mounts
    return [option for option in mount.options if option.startswith(start)]


def upper(tmp_path: Path, mounts) -> Path:
    (option,) = options(mounts, "upperdir=")
    return Path(option.partition("=")[2])


def test_a_lazy_image_is_mapped_from_its_root_on_as_containerd_maps_the_directory_above_a_lower_one(
    client, chains, tmp_path
):
    """containerd clones that, without what is mounted below it."""
    mounts = client.prepare("ns/container", lazy(client), ASKED)
    assert options(mounts)[:2] == SAID
    assert options(mounts, "lowerdir=") == [f"lowerdir={chains.home / chain_name(APP)}/."]
    assert mounts[0].source == str(chains.home / chain_name(APP))  # or nothing would tell
    owner = upper(tmp_path, mounts).stat()
    assert (owner.st_uid, owner.st_gid) == (100000, 200000)
    assert client.mounts("ns/container") == mounts


def test_an_image_that_is_here_is_mapped_too(client, tmp_path):
    top = unpacked(client, "top", unpacked(client, "base"))
    mounts = client.prepare("ns/container", top, ASKED)
    assert options(mounts)[:2] == SAID
    (lowers,) = options(mounts, "lowerdir=")
    assert lowers.count(":") == 1
    (bound,) = client.view("ns/view", "base", ASKED)
    assert (bound.type, list(bound.options)) == ("bind", [*SAID, "ro", "rbind"])


def test_what_stands_on_nothing_is_mapped_as_a_whole(client):
    (bound,) = client.prepare("ns/empty", "", ASKED)
    assert list(bound.options) == [*SAID, "rw", "rbind"]
    assert Path(bound.source).stat().st_uid == 0


def test_the_root_has_the_containers_owner_of_its_parent(client, chains, tmp_path):
    top = lazy(client)
    root = chains.home / chain_name(APP)
    root.mkdir(parents=True)
    os.chown(root, 1000, 70000)  # the container has no such group
    owner = upper(tmp_path, client.prepare("ns/container", top, ASKED)).stat()
    assert (owner.st_uid, owner.st_gid) == (101000, 200000)


@pytest.mark.expect_log("containerd changes the owner of each file")
@pytest.mark.parametrize("owner", [(0, 0), (1000, 5)])
def test_owners_that_containerd_has_changed_are_not_mapped_again(client, chains, tmp_path, owner):
    top = lazy(client)
    root = chains.home / chain_name(APP)
    root.mkdir(parents=True)
    os.chown(root, *owner)
    moved = (100000 + owner[0], 200000 + owner[1])
    changed = client.prepare("ns/7/sha256:0-remap", top)
    os.chown(upper(tmp_path, changed), *moved)
    client.commit("ns/8/sha256:0", "ns/7/sha256:0-remap")
    mounts = client.prepare("ns/container", "ns/8/sha256:0", ASKED)
    assert not {*SAID} & {*options(mounts)}
    status = upper(tmp_path, mounts).stat()
    assert (status.st_uid, status.st_gid) == moved


def test_the_owner_of_an_image_s_root_decides_nothing(client, chains):
    """Or who makes an image would say who is not mapped."""
    top, labels = lazy(client), cri_labels("unknown", APP, 1)
    (layer,) = client.prepare("ns/layer", "", labels)
    client.commit("ns/unpacked", "ns/layer", labels)
    root = chains.home / chain_name(APP)
    root.mkdir(parents=True)
    for number, (name, directory) in enumerate(((top, root), ("ns/unpacked", layer.source))):
        os.chown(directory, 100000, 200000)
        assert {*SAID} <= {*options(client.prepare(f"ns/container/{number}", name, ASKED))}


def test_layers_over_a_lazy_image_are_shown_by_clones_of_our_own(client, chains, tmp_path):
    """containerd cannot map both."""
    labels = cri_labels("unknown", APP, 1)
    (own,) = options(client.prepare("ns/layer", lazy(client), labels), "upperdir=")
    file = Path(own.partition("=")[2]) / "file"
    file.touch()
    os.chown(file, 5, 6)
    client.commit("ns/top", "ns/layer", labels)
    mounts = client.prepare("ns/container", "ns/top", ASKED)
    assert mounts[0].source == str(chains.home / chain_name(APP))
    assert not {*SAID} & {*options(mounts)}
    for shown in (mounts, client.mounts("ns/container")):
        (told,) = options(shown, "lowerdir=")
        above, below = map(Path, told.partition("=")[2].split(":"))
        owners = [(path.stat().st_uid, path.stat().st_gid) for path in (above / "file", below)]
        assert owners == [(100005, 200006), (100000, 200000)]
        with pytest.raises(OSError, match="Read-only"):
            (above / "more").touch()
    status = upper(tmp_path, mounts).stat()
    assert (status.st_uid, status.st_gid) == (100000, 200000)
    assert len(mounts_below(tmp_path)) == 4
    client.remove("ns/container")
    assert mounts_below(tmp_path) == []
    assert file.exists()


async def test_clones_go_after_a_while_and_those_of_a_process_before_when_the_next_begins(tmp_path):
    lower = tmp_path / "lower"
    lower.mkdir()
    async with trio.open_nursery() as nursery:
        short, lasting = (
            MappedLowers(tmp_path / name, nursery, kept) for name, kept in (("a", 0), ("b", 60))
        )
        for mapped in (short, lasting):
            await mapped.shown(1, [lower], mapping_of(ASKED))
        await trio.to_thread.run_sync(wait_until, lambda: not [*(tmp_path / "a").iterdir()])
        assert len(mounts_below(tmp_path)) == 1
        MappedLowers(tmp_path / "b", nursery).clear()
        assert mounts_below(tmp_path) == []
        await lasting.end(1)
        nursery.cancel_scope.cancel()
    assert [*(tmp_path / "b").iterdir()] == []


async def test_what_the_kernel_cannot_show_so_is_refused_and_nothing_stays(tmp_path):
    async with trio.open_nursery() as nursery:
        mapped = MappedLowers(tmp_path / "mapped", nursery)
        with pytest.raises(SnapshotInUse, match="Invalid argument; once the image has an index"):
            await mapped.shown(1, [tmp_path, Path("/proc")], mapping_of(ASKED))
    assert mounts_below(tmp_path) == []
    assert [*(tmp_path / "mapped").iterdir()] == []


def test_layers_are_never_mapped_as_their_labels_are_the_images_author_s(client):
    labels = {**cri_labels("unknown", APP, 1), **ASKED}
    (bound,) = client.prepare("ns/layer", "", labels)
    assert list(bound.options) == ["rw", "rbind"]


def test_ranges_map_what_they_say():
    mapping = mapping_of({UIDS: "0:1000:10,10:5000:1", GIDS: "5:0:1,0:7:1"})
    assert mapping.options == ("uidmap=0:1000:10,10:5000:1", "gidmap=5:0:1,0:7:1")
    assert mapping.root == (1000, 7)
    assert mapping.owner(9, 5) == (1009, 0)
    assert mapping.owner(10, 6) == (5000, 7)
    assert mapping_of({"other": "label"}) is SAME
    assert SAME.owner(12, 34) == (12, 34)


@pytest.mark.parametrize(
    "wrong",
    [
        {UIDS: "0:1:1"},
        {GIDS: "0:1:1"},
        {UIDS: "0:1:1", GIDS: "0:1"},
        {UIDS: "0:1:1,", GIDS: "0:1:1"},
        {UIDS: "0:1:0", GIDS: "0:1:1"},
        {UIDS: "1:1:1", GIDS: "0:1:1"},
        {UIDS: "0:-1:1", GIDS: "0:1:1"},
        {UIDS: "0:1:1", GIDS: "0:4294967295:2"},
        {UIDS: "0:1:1", GIDS: "0:1:1\n"},
        {UIDS: "0:1:٣", GIDS: "0:1:1"},
    ],
)
def test_mappings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(BadSnapshotCall, match="mapping"):
        mapping_of(wrong)


def test_a_mapping_that_makes_no_sense_leaves_nothing(client, tmp_path):
    with status("INVALID_ARGUMENT"):
        client.prepare("ns/container", "", {**ASKED, UIDS: "all"})
    assert client.list() == []
    assert list((tmp_path / "root" / "snapshots").iterdir()) == []
