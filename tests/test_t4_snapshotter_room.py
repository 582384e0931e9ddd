"""A snapshotter on a full disk: it says so, loses nothing, removes snapshots, and goes on with new room."""

import os
import subprocess
from pathlib import Path

import pytest

from lazyfs.snapshotter.metastore import Metastore
from lazyfs.snapshotter.model import DiskRefused, Kind
from lazyfs.snapshotter.reserve import SIZE, Reserve
from tests.support.crash import fill_up, small_disk
from tests.support.snapshot_client import SnapshotClient, status
from tests.support.snapshotters import FakeChains, served

DISK = 32 << 20
CONTENT = bytes(range(256)) * 400


def written(client: SnapshotClient, key: str, parent: str = "") -> Path:
    """A file in a new active snapshot."""
    (mount,) = client.prepare(key, parent)
    uppers = [option.removeprefix("upperdir=") for option in mount.options if option.startswith("upperdir=")]
    file = Path(*(uppers or [mount.source]), "file")
    file.write_bytes(CONTENT)
    return file


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_on_a_full_disk_nothing_is_lost_and_what_is_removed_makes_room(tmp_path: Path, kind: str) -> None:
    chains = FakeChains(tmp_path / "daemon")
    with small_disk(tmp_path / "disk", DISK, kind) as disk, served(disk / "root", chains) as client:
        written(client, "below")
        client.commit("layer", "below")
        kept, spare = written(client, "kept", "layer"), written(client, "spare")
        fill_up(disk / "ballast")
        for call in (client.prepare, client.view):
            with status("RESOURCE_EXHAUSTED") as said:
                call("more", "layer")
            assert said[0].startswith(("cannot make a snapshot's directory: ", "the records of snapshots "))
        with status("RESOURCE_EXHAUSTED"):
            client.commit("upper", "kept")
        assert client.names() == ["kept", "layer", "spare"]
        client.remove("spare")
        assert not spare.exists()
        client.commit("upper", "kept")
        assert kept.read_bytes() == CONTENT
        assert len(client.prepare("more", "upper")) == 1


@pytest.mark.parametrize("spare", [0, 1, 2])
def test_without_inodes_nothing_is_left_of_what_was_begun(tmp_path: Path, spare: int) -> None:
    chains = FakeChains(tmp_path / "daemon")
    with small_disk(tmp_path / "disk", DISK, "tmpfs") as disk, served(disk / "root", chains) as client:
        client.prepare("one")
        used = os.statvfs(disk).f_files - os.statvfs(disk).f_ffree
        subprocess.run(["mount", "-o", f"remount,nr_inodes={used + spare}", disk], check=True)
        with status("RESOURCE_EXHAUSTED") as said:
            client.prepare("more")
        assert said == ["cannot make a snapshot's directory: No space left on device"]
        assert [path.name for path in (disk / "root" / "snapshots").iterdir()] == ["1"]
        client.remove("one")
        client.prepare("more")
        assert client.names() == ["more"]


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_it_starts_on_a_full_disk(tmp_path: Path, kind: str) -> None:
    chains = FakeChains(tmp_path / "daemon")
    with small_disk(tmp_path / "disk", DISK, kind) as disk:
        with served(disk / "root", chains, tmp_path / "s") as client:
            client.prepare("one")
            client.prepare("two")
        fill_up(disk / "ballast")
        with served(disk / "root", chains, tmp_path / "s") as client:
            with status("RESOURCE_EXHAUSTED"):
                client.update("one", {"containerd.io/x": "x" * 4000})
            client.remove("one")
            assert client.names() == ["two"]


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_removals_find_room_however_fast_others_take_it(tmp_path: Path, kind: str) -> None:
    names = [f"{number:03}{'x' * 60}" for number in range(400)]
    with small_disk(tmp_path / "disk", DISK, kind) as disk:
        store = Metastore(disk / "records.db")
        for number, name in enumerate(names):
            store.create(number, Kind.VIEW, name, "", {"containerd.io/label": "x" * 300})
        store.close()  # and with it goes its log, which had room
        store = Metastore(disk / "records.db")
        for name in names:
            fill_up(disk / "ballast")
            store.remove(name)
        assert store.ids() == set()
        (disk / "ballast").unlink()
        store.create(1, Kind.VIEW, "a", "", {})
        assert room_in(disk / "records.reserve") >= SIZE
        store.close()


def test_without_a_reserve_a_removal_says_why_it_fails(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", DISK, "tmpfs") as disk:
        store = Metastore(disk / "records.db")
        store.create(1, Kind.VIEW, "a", "", {})
        (disk / "records.reserve").unlink()
        (disk / "records.reserve").mkdir()
        fill_up(disk / "ballast")
        with pytest.raises(DiskRefused, match="full"):
            store.remove("a")
        assert store.ids() == {1}
        store.close()


def test_a_reserve_of_holes_is_none(tmp_path: Path) -> None:
    path = tmp_path / "reserve"
    path.touch()
    os.truncate(path, SIZE)
    Reserve(path)
    assert room_in(path) >= SIZE


def room_in(path: Path) -> int:
    """How much of a disk a file takes."""
    return path.stat().st_blocks * 512
