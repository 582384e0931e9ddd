"""Which comparisons are ours, what becomes of the others, and a containerd that does not answer."""

import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest

from lazyfs.snapshotter.diff_service import MESSAGES, SERVICE, differ_of
from lazyfs.snapshotter.differ import NotOurs, changed_directory, compression_of, make_layer, see_trusted
from lazyfs.snapshotter.model import Mount, NoSnapshot
from tests.support.containers import until
from tests.support.crash import fill_up, small_disk
from tests.support.snapshot_client import status

KNOWN = 7
ROOT = Path("/root/snapshots")
TREE = "/daemon/mounts/abc"
ODD = ("index=off", "userxattr")
GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"


def overlay(*lower: str, upper: str = "", options: tuple[str, ...] = ()) -> list[Mount]:
    own = (f"workdir={upper}/../work", f"upperdir={upper}") if upper else ()
    return [Mount("overlay", "overlay", (*options, *own, f"lowerdir={':'.join(lower)}"))]


def bind(source: str, *options: str) -> list[Mount]:
    return [Mount("bind", source, options or ("ro", "rbind"))]


def snapshot(number: int) -> str:
    return f"{ROOT}/{number}/fs"


@pytest.mark.parametrize(
    ("left", "right", "found"),
    [
        (bind(TREE), overlay(TREE, upper=snapshot(7)), 7),
        (bind(TREE), overlay(TREE, upper=snapshot(7), options=ODD), 7),
        (overlay(snapshot(3), TREE), overlay(snapshot(3), TREE, upper=snapshot(7)), 7),
        (overlay(snapshot(3), TREE), overlay(snapshot(7), snapshot(3), TREE), 7),
        (bind(TREE), overlay(snapshot(7), TREE), 7),
        ([], bind(snapshot(7), "rw", "rbind"), 7),
        ([], bind(snapshot(7)), 7),
    ],
)
def test_what_a_snapshot_adds_lies_in_its_directory(left: Any, right: Any, found: int) -> None:
    assert changed_directory(left, right, ROOT) == (found, Path(snapshot(found)))


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ([], []),
        (bind(TREE), []),
        (bind(TREE), bind(TREE)),
        ([], bind(TREE)),
        ([], overlay(TREE, upper=snapshot(7))),
        (bind(TREE), overlay(TREE, snapshot(3), upper=snapshot(7))),
        (overlay(snapshot(3), TREE), overlay(TREE, snapshot(3), upper=snapshot(7))),
        (bind(TREE), overlay(TREE, upper=snapshot(7), options=("metacopy=on",))),
        (bind(TREE, "ro", "idmap=x"), overlay(TREE, upper=snapshot(7))),
        (bind(TREE), overlay(f"{TREE}/.", upper=snapshot(7), options=("uidmap=0:1:1", "gidmap=0:1:1"))),
        (bind(TREE), [Mount("erofs", "overlay", (f"lowerdir={TREE}", f"upperdir={snapshot(7)}"))]),
        (bind(TREE), [Mount("overlay", "overlay", (f"upperdir={snapshot(7)}",))]),
        (bind(TREE), [*overlay(TREE, upper=snapshot(7)), *bind("/etc")]),
        ([], bind("/etc")),
        ([], bind(f"{ROOT}/7/work")),
        ([], bind(f"{ROOT}/7/../fs")),
        ([], bind(f"{ROOT}/x/fs")),
        ([], bind(f"{ROOT}/{'7' * 5000}/fs")),
        ([], bind(f"{ROOT}/7/fs/etc")),
        ([], bind("/other/snapshots/7/fs")),
    ],
)
def test_anything_else_is_left_to_containerd(left: Any, right: Any) -> None:
    with pytest.raises(NotOurs):
        changed_directory(left, right, ROOT)


def test_layers_of_docker_s_own_type_are_left_to_containerd() -> None:
    ours = ("", GZIP, GZIP.replace("gzip", "zstd"), GZIP.removesuffix("+gzip"))
    assert [compression_of(kind) for kind in ours] == ["gzip", "gzip", "zstd", "none"]
    for kind in ("application/vnd.docker.image.rootfs.diff.tar.gzip", f"{GZIP}+gzip", "+gzip"):
        with pytest.raises(NotOurs):
            compression_of(kind)


def test_who_cannot_see_overlayfs_s_marks_makes_no_layers() -> None:
    see_trusted()
    asking = "from lazyfs.snapshotter.differ import see_trusted; see_trusted()"
    words = ["setpriv", "--bounding-set=-sys_admin", sys.executable, "-c", asking]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert "NotOurs: overlayfs's marks" in done.stderr


def test_no_time_is_later_than_the_one_that_is_wanted(tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    upper.mkdir()
    for name, moment in (("old", 5), ("new", 50)):
        (upper / name).touch()
        os.utime(upper / name, times=(0, moment))
    with (tmp_path / "layer").open("w+b") as file:
        make_layer(upper, file.fileno(), "gzip", latest_ns=20 * 10**9)
        file.seek(0)
        with tarfile.open(fileobj=file) as layer:
            times = {member.name: member.mtime for member in layer}
    assert (times["old"], times["new"]) == (5, 20)


def namespace_of(number: int) -> str:
    """That of the one snapshot with a record."""
    if number != KNOWN:
        raise NoSnapshot(f"snapshot {number} does not exist")
    return "ns"


def differing(top: Path) -> AbstractContextManager[grpc.GenericRpcHandler]:
    return differ_of(top, top / "containerd.sock", namespace_of)


class Asker:
    """Asks for layers."""

    def __init__(self, ask: Any) -> None:
        self._ask = ask

    def __call__(self, **fields: Any) -> Any:
        return self._ask(MESSAGES["DiffRequest"](**fields), timeout=60)

    def later(self, **fields: Any) -> grpc.Future:
        return self._ask.future(MESSAGES["DiffRequest"](**fields))


@contextmanager
def asking(top: Path) -> Iterator[Asker]:
    """Asks a differ of the snapshots below `top`, whose containerd is not there."""
    address = f"unix:{top}/sock"
    with differing(top) as handler, ThreadPoolExecutor() as pool:
        server = grpc.server(pool, handlers=[handler])
        server.add_insecure_port(address)
        server.start()
        with grpc.insecure_channel(address) as channel:
            ask = channel.unary_unary(
                f"/{SERVICE}/Diff",
                request_serializer=MESSAGES["DiffRequest"].SerializeToString,
                response_deserializer=MESSAGES["DiffResponse"].FromString,
            )
            yield Asker(ask)
        server.stop(None).wait()


@pytest.fixture
def diff(tmp_path: Path) -> Iterator[Asker]:
    with asking(tmp_path) as asker:
        yield asker


def upper_of(top: Path, number: int = KNOWN) -> dict[str, Any]:
    """A snapshot's directory, and the mount that shows it alone."""
    upper = top / "snapshots" / str(number) / "fs"
    upper.mkdir(parents=True)
    return {"type": "bind", "source": str(upper), "options": ["rw", "rbind"]}


@pytest.mark.expect_log("the layer goes nowhere: UNAVAILABLE")
def test_without_containerd_the_layer_goes_nowhere_and_nothing_is_left(diff: Asker, tmp_path: Path) -> None:
    right = upper_of(tmp_path)
    with status("UNIMPLEMENTED"):
        diff(right=[right])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["snapshots", "sock"]


def test_what_no_layer_can_say_is_left_to_containerd(diff: Asker, tmp_path: Path) -> None:
    right = upper_of(tmp_path)
    Path(right["source"], ".wh.x").touch()
    with status("UNIMPLEMENTED") as said:
        diff(right=[right])
    assert ".wh." in said[0]


@pytest.mark.expect_log("left to containerd")
def test_a_snapshot_that_is_gone_is_left_to_containerd(diff: Asker, tmp_path: Path) -> None:
    right = upper_of(tmp_path)
    Path(right["source"]).rmdir()
    with status("UNIMPLEMENTED"):
        diff(right=[right])


def test_a_layer_without_room_is_not_made_by_containerd_either(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1 << 20, "tmpfs") as disk, asking(disk) as diff:
        right = upper_of(disk)
        Path(right["source"], "file").write_bytes(os.urandom(1 << 19))
        fill_up(disk / "ballast", leave=1 << 18)
        with status("RESOURCE_EXHAUSTED") as said:
            diff(right=[right])
        assert said == [f"cannot write the layer to {disk}: No space left on device"]
        assert sorted(path.name for path in disk.iterdir()) == ["ballast", "snapshots", "sock"]


def test_a_directory_without_a_record_is_left_to_containerd(diff: Asker, tmp_path: Path) -> None:
    with status("UNIMPLEMENTED"):
        diff(right=[upper_of(tmp_path, KNOWN + 1)])


def opened() -> Iterator[str]:
    """What this process has open."""
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            yield str(link.readlink())


@pytest.mark.expect_log("the layer goes nowhere: CANCELLED")
def test_a_layer_that_nobody_waits_for_is_not_made(diff: Asker, tmp_path: Path, caplog: Any) -> None:
    right = upper_of(tmp_path)
    with Path(right["source"], "large").open("wb") as file:
        file.truncate(1 << 40)
    call = diff.later(right=[right])
    until(lambda: any("snapshots/7" in link for link in opened()), "the file is read")
    call.cancel()
    until(lambda: "nobody waits" in caplog.text, "it is given up")


def test_layers_are_applied_by_containerd(tmp_path: Path) -> None:
    with differing(tmp_path) as handler:
        assert handler.service(HandlerCallDetails(f"/{SERVICE}/Apply")) is None


class HandlerCallDetails(NamedTuple):
    """What gRPC tells of a call."""

    method: str
    invocation_metadata: tuple[tuple[str, str], ...] = ()
