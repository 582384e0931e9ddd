"""The 21 behaviours that containerd's `snapshots/testsuite` wants of any snapshotter, over the socket.

Those about files hold twice: on layers that are all here, and on top of a lazy one.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.oracle import compare_trees
from tests.support.snapshot_client import SnapshotClient, status
from tests.support.snapshot_mounts import (
    NOT_THE_SAME,
    Stack,
    delete,
    link,
    make,
    mounted,
    own,
    rename,
    write,
)
from tests.support.snapshotters import FakeChains, cri_labels, digest, served

VIEW, ACTIVE, COMMITTED = 1, 2, 3
GC_ROOT = {"containerd.io/gc.root": "2026-01-01T00:00:00Z"}
LAZY_LAYERS = [digest("one"), digest("two")]


@pytest.fixture
def chains(tmp_path: Path) -> FakeChains:
    return FakeChains(tmp_path / "daemon", {"lazy": LAZY_LAYERS})


@pytest.fixture
def client(tmp_path: Path, chains: FakeChains) -> Iterator[SnapshotClient]:
    with served(tmp_path / "root", chains) as client:
        yield client


@pytest.fixture(params=["all here", "on a lazy layer"])
def stack(request, tmp_path: Path, client: SnapshotClient, chains: FakeChains) -> Iterator[Stack]:
    work = tmp_path / "work"
    work.mkdir()
    if request.param == "all here":
        yield Stack(client, work)
        return
    for depth, parent in ((1, ""), (2, "lazy 1")):
        with status("ALREADY_EXISTS"):
            client.prepare(f"lazy {depth}", parent, cri_labels("lazy", LAZY_LAYERS, depth))
    (mount,) = client.view("look", "lazy 2")
    yield Stack(client, work, "lazy 2", Path(mount.source))
    client.remove("look")
    assert not chains.mounted


def test_basic(client, tmp_path):
    first = (write("foo", "foo\n", 0o777), make("a"), make("a/b"), make("a/b/c"))
    second = (write("bar", "bar\n", 0o777), write("foo", "bar\n", 0o777), delete("a/b"))
    flat = tmp_path / "flat"
    flat.mkdir()
    with mounted(client.prepare("preparing", "", GC_ROOT), tmp_path / "m") as point:
        for change in first:
            change(point)
            change(flat)
    client.commit("committed", "preparing", GC_ROOT)
    one = client.stat("committed")
    assert (one.parent, one.kind) == ("", COMMITTED)
    with status("NOT_FOUND"):
        client.stat("preparing")
    with mounted(client.prepare("next", "committed", GC_ROOT), tmp_path / "m") as point:
        assert compare_trees(flat, point, ignore=NOT_THE_SAME) == []
        for change in second:
            change(point)
            change(flat)
    info = client.stat("next")
    assert (info.parent, info.kind) == ("committed", ACTIVE)
    client.commit("committed-next", "next", GC_ROOT)
    two = client.stat("committed-next")
    assert (two.parent, two.kind) == ("committed", COMMITTED)
    with status("NOT_FOUND"):
        client.stat("next")
    assert client.list() == [one, two]
    with mounted(client.view("nextnext", "committed-next", GC_ROOT), tmp_path / "m") as point:
        assert compare_trees(flat, point, ignore=NOT_THE_SAME) == []
    client.remove("nextnext")
    with status("FAILED_PRECONDITION") as said:
        client.remove("committed")
    assert "remove" in said[0]
    client.remove("committed-next")
    client.remove("committed")
    assert client.list() == []


def test_stat_of_an_active_snapshot(client, tmp_path):
    with mounted(client.prepare("preparing", "", GC_ROOT), tmp_path / "m") as point:
        write("foo", "foo\n")(point)
        info = client.stat("preparing")
        assert (info.name, info.kind, info.parent) == ("preparing", ACTIVE, "")
        assert dict(info.labels) == GC_ROOT


def test_stat_of_a_committed_snapshot(client, tmp_path):
    with mounted(client.prepare("preparing", "", GC_ROOT), tmp_path / "m") as point:
        write("foo", "foo\n")(point)
        client.commit("committed", "preparing", {"other": "label"})
    info = client.stat("committed")
    assert (info.name, info.kind, info.parent) == ("committed", COMMITTED, "")
    assert dict(info.labels) == {"other": "label"}


def test_parents_have_parents(stack, client):
    base = stack.top
    first = stack.add(write("foo", "foo\n"))
    second = stack.add(write("foo", "foo bar\n"))
    assert client.stat(first).parent == base
    assert client.stat(second).parent == first
    assert client.stat(client.stat(second).parent).parent == base


def test_a_key_is_used_once(client):
    client.prepare("preparing")
    client.commit("A", "preparing")
    client.prepare("new", "A")
    client.view("view", "A")
    for call in (client.prepare, client.view):
        for taken in ("new", "view", "A"):
            with status("ALREADY_EXISTS"):
                call(taken, "A")


def base_snapshots(client: SnapshotClient) -> dict[str, tuple[int, str]]:
    """Kinds and parents of six snapshots."""
    client.prepare("c1-a")
    client.commit("c1", "c1-a", GC_ROOT)
    client.prepare("c2-a", "c1")
    client.commit("c2", "c2-a", GC_ROOT)
    client.prepare("a1", "c2", GC_ROOT)
    client.prepare("a2", "", GC_ROOT)
    client.view("v1", "c2", GC_ROOT)
    client.view("v2", "", GC_ROOT)
    return {
        "c1": (COMMITTED, ""),
        "c2": (COMMITTED, "c1"),
        "a1": (ACTIVE, "c2"),
        "a2": (ACTIVE, ""),
        "v1": (VIEW, "c2"),
        "v2": (VIEW, ""),
    }


def test_update(client):
    before = time.time_ns()
    expected = base_snapshots(client)
    for name, (kind, parent) in expected.items():
        info = client.stat(name)
        created = info.created_at
        assert before <= created.ToNanoseconds() <= time.time_ns()
        assert info.updated_at == created
        labels = {"l1": "v1", "l2": "v2", "l3": "v3"}
        moment = time.time_ns()
        info = client.update(name, labels, parent="doesnotexist", kind=7)
        assert (info.name, info.kind, info.parent, info.created_at) == (name, kind, parent, created)
        assert moment <= info.updated_at.ToNanoseconds() <= time.time_ns()
        assert info.labels == labels
        info = client.update(name, {"l1": "updated", "l4": "v4"}, "labels.l1", "labels.l2")
        assert info.labels == {"l1": "updated", "l3": "v3"}
        info = client.update(name, {"l4": "v4", "empty": ""}, "labels")
        assert info.labels == {"l4": "v4"}
        assert client.stat(name) == info
        for path in ("parent", "kind", "name", "size", "labels,", ""):
            with status("INVALID_ARGUMENT"):
                client.update(name, {}, "labels.l4", path, parent="doesnotexist")
        assert client.stat(name) == info
    with status("NOT_FOUND"):
        client.update("absent", {})


def test_names_are_free_again_after_removal(client):
    client.prepare("committed-a")
    client.commit("committed-1", "committed-a")
    client.prepare("reuse-1", "committed-1")
    client.remove("reuse-1")
    client.view("reuse-1", "committed-1")
    client.remove("reuse-1")
    client.prepare("reuse-1")
    client.remove("committed-1")
    client.commit("committed-1", "reuse-1")
    assert client.names() == ["committed-1"]
    with status("NOT_FOUND"):
        client.remove("reuse-1")


def test_walk(client):
    root = {"containerd.io/gc.root": "check-walk"}
    client.prepare("a-np", "", root)
    for name, labels in (("p", root), ("p-wl", root | {"l": "1"})):
        client.prepare(f"{name}-tmp")
        client.commit(name, f"{name}-tmp", labels)
    client.prepare("a", "p", root)
    client.view("v", "p", root)
    client.prepare("a-wl", "p-wl", root | {"l": "2"})
    client.view("v-wl", "p-wl", root | {"l": "3"})
    client.prepare("a-np-wl", "", root | {"l": "2"})
    rooted = 'labels."containerd.io/gc.root"==check-walk'
    for filters, names in {
        (): "a a-np a-np-wl a-wl p p-wl v v-wl",
        (rooted,): "a a-np a-np-wl a-wl p p-wl v v-wl",
        (f"kind==active,{rooted}",): "a a-np a-np-wl a-wl",
        (f"kind==view,{rooted}",): "v v-wl",
        (f"kind==committed,{rooted}",): "p p-wl",
        ("name==p", "name==a-np-wl"): "a-np-wl p",
        ("name==a-wl,labels.l",): "a-wl",
        ("parent==p",): "a v",
        (f'parent!="",{rooted}',): "a a-wl v v-wl",
        ("labels.l",): "a-np-wl a-wl p-wl v-wl",
        ("labels.l==2",): "a-np-wl a-wl",
        ("labels.l==4",): "",
    }.items():
        assert client.names(*filters) == names.split(), filters
    with status("INVALID_ARGUMENT"):
        client.list("name=p")


def test_a_file_is_replaced_in_an_upper_layer(stack):
    stack.add(
        make("etc", 0o700),
        write("etc/hosts", "mydomain 10.0.0.1"),
        write("etc/profile", "PATH=/usr/bin"),
    )
    stack.add(
        write("etc/hosts", "mydomain 10.0.0.2"),
        write("etc/profile", "PATH=/usr/bin", 0o666),
        make("root", 0o700),
        write("root/.bashrc", "PATH=/usr/sbin:/usr/bin"),
    )
    stack.check()


def test_a_directory_removed_and_made_again_is_empty(stack):
    stack.add(make("lib", 0o700), write("lib/hidden", ""))
    stack.add(delete("lib"), make("lib", 0o700), write("lib/not-hidden", ""))
    stack.add(write("lib/newfile", ""))
    stack.check()


def test_owners_change_in_an_upper_layer(stack):
    stack.add(make("opt", 0o700), make("opt/a", 0o700), make("opt/a/b", 0o700), write("opt/a/b/f", "hello"))
    stack.add(own("opt", 1), own("opt/a", 1), own("opt/a/b", 1), own("opt/a/b/f", 1))
    stack.check()


def test_owners_of_directories_survive_commits(stack):
    dirs = [make(f"dir{n}", 0o700) for n in range(1, 6)]
    stack.add(
        *dirs,
        *(write("dir4/f1", "..."), write("dir5/f1", "...")),
        *(own(path, 1) for path in ("dir1", "dir2", "dir3", "dir5", "dir5/f1")),
    )
    stack.add(own("dir2", 0), delete("dir3"), own("dir4", 1), own("dir4/f1", 1))
    stack.add(make("dir3", 0o700), own("dir3", 1), delete("dir5"), make("dir5", 0o700), own("dir5", 1))
    stack.check()


def test_a_snapshot_with_children_stays(client):
    client.prepare("base")
    client.commit("committed-base", "base")
    client.prepare("intermediate", "committed-base")
    client.commit("committed-inter", "intermediate")
    client.prepare("top", "committed-inter")
    with status("FAILED_PRECONDITION"):
        client.remove("committed-inter")
    for name in ("top", "committed-inter", "committed-base"):
        client.remove(name)
    assert client.list() == []


def test_deleted_files_stay_deleted(stack):
    stack.add(write("foo", "foo\n", 0o777), write("foobar", "foobar\n", 0o777))
    stack.add(delete("foobar"))
    stack.add()
    stack.check()


def test_files_move_between_directories(stack):
    stack.add(make("dir1", 0o700), write("dir1/f1", "Hello"), make("dir2", 0o700), write("dir2/f2", "..."))
    stack.add(
        *(make("dir3", 0o700), write("dir3/f1", "Hello"), delete("dir1")),
        *(link("dir2/f2", "dir3/f2"), delete("dir2/f2")),
    )
    stack.check()


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_a_view_cannot_be_written_to(layers, stack, tmp_path):
    for _ in range(layers):
        stack.add()
    with (
        mounted(stack.client.view("readonly", stack.top), tmp_path / "m") as point,
        pytest.raises(OSError, match="Read-only file system"),
    ):
        (point / "testfile").write_text("testcontent")
    stack.client.remove("readonly")


def test_stat_says_the_same_as_a_walk(client):
    base_snapshots(client)
    assert [client.stat(info.name) for info in client.list()] == client.list()


def test_closing_and_opening_again_keeps_everything(tmp_path):
    chains = FakeChains(tmp_path / "daemon")
    with served(tmp_path / "root", chains) as client:
        base_snapshots(client)
        before = client.list()
    with served(tmp_path / "root", chains) as client:
        assert client.list() == before
        client.prepare("another", "c2")


def test_the_root_of_a_new_snapshot_is_0755(client, tmp_path):
    before = os.umask(0o077)
    try:
        with mounted(client.prepare("preparing"), tmp_path / "m") as point:
            assert point.stat().st_mode & 0o7777 == 0o755
    finally:
        os.umask(before)


def test_renames(stack):
    stack.add(
        *(make("dir1", 0o700), make("somefiles", 0o700)),
        *(write("somefiles/f1", "was here first!"), write("somefiles/f2", "nothing interesting")),
    )
    stack.add(
        *(write("somefiles/new", "new content 1"), rename("somefiles/new", "somefiles/f1")),
        rename("somefiles/f2", "somefiles/f3"),
    )
    stack.check()


def test_128_layers(stack):
    stack.add(
        *(write("bottom", "way at the bottom\n", 0o777), write("overwriteme", "FIRST!\n", 0o777)),
        *(make("addhere"), make("onlyme"), write("onlyme/bottom", "bye!\n", 0o777)),
    )
    for number in range(1, 128):
        stack.add(
            write("overwriteme", f"{number} WAS HERE!\n", 0o777),
            write(f"addhere/file-{number}", "same\n", 0o755),
            *(delete("onlyme"), make("onlyme"), write(f"onlyme/file-{number}", "only me!\n", 0o777)),
        )
    stack.check()
