"""The snapshotter killed before every step of every call: nothing is lost by that, and nothing left over.

The other side is played as containerd plays it: it knows what it was answered, removes what it does not know
(its garbage collection), and does again what failed.
"""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from lazyfs.oci.chain import chain_name
from tests.support.crash import ROOT
from tests.support.snapshot_client import SnapshotClient, connected
from tests.support.snapshotters import chain_id, cri_labels, digest

APP = [digest("base"), digest("app")]
NAME = chain_name(APP)
COMMITTED = 3

SERVER = """
import os, signal, sys
from pathlib import Path
import trio
from lazyfs.snapshotter.run import run_snapshotter
from tests.support.snapshotters import FakeChains

root, socket, home, layers, *spared = sys.argv[1:]

def step(name):
    if name not in spared:
        Path(root, "died").write_text(name)
        os.kill(os.getpid(), signal.SIGKILL)

class Chains(FakeChains):
    # What it has mounted outlives us, as the daemon does.
    def _hear(self, question):
        self.mounted = {path.name for path in self.home.glob("*/") if not (path / "released").exists()}

    async def mount(self, order):
        mount = await super().mount(order)
        (mount.path / "released").unlink(missing_ok=True)
        return mount

    async def release(self, name):
        if (self.home / name).exists():
            (self.home / name / "released").touch()

    async def keep(self, names):
        for name in self.home.glob("*/"):
            if name.name not in names:
                (name / "released").touch()
        Path(root, "kept").touch()
        return []

home = Path(home)
home.mkdir(exist_ok=True)
chains = Chains(home, {"app": layers.split(",")})
trio.run(lambda: run_snapshotter(Path(root), Path(socket), chains, chains, step=step))
"""


class Machine:
    """A snapshotter that dies, and what a containerd knows of it.

    Attributes:
        known: names of snapshots that it was told of.
        leaving: a name whose removal is under way: nobody can tell whether it is there.
        deaths: the steps before which the snapshotter died, in order.
    """

    def __init__(self, top: Path) -> None:
        self._top = top
        self._stack = ExitStack()
        self._server: subprocess.Popen[bytes] | None = None
        self._counter = 0
        self.known: set[str] = set()
        self.leaving = ""
        self.deaths: list[str] = []
        self.client: SnapshotClient = self._stack.enter_context(connected(top / "sock"))

    def close(self) -> None:
        self._stack.close()
        self._end()

    def key(self) -> str:
        """A key as containerd makes them: never used before."""
        self._counter += 1
        return f"ns/{self._counter}/key"

    def restart(self, *spared: str) -> None:
        """Kill the snapshotter and start it; it dies before any step but these."""
        self._end()
        kept = self._top / "root" / "kept"
        kept.unlink(missing_ok=True)
        words = (self._top / "root", self._top / "sock", self._top / "daemon", ",".join(APP), *spared)
        self._server = subprocess.Popen([sys.executable, "-c", SERVER, *map(str, words)], cwd=ROOT)
        answers = False
        while not (answers and kept.exists()):  # told to the daemon in the background
            with suppress_status("UNAVAILABLE"):  # a channel may learn late that its server has died
                self.client.list()
                answers = True

    def collect_garbage(self) -> None:
        """Remove what is not known, children first."""
        for info in sorted(self.client.list(), key=_age):
            if info.name not in self.known | {self.leaving}:
                self.client.remove(info.name)
        self.client.cleanup()

    def insist(self, call: Callable[[], None], *spare: str) -> None:
        """Do something until the snapshotter has died before each of its steps but those to spare."""
        spared = list(spare)
        while True:
            self.restart(*spared)
            died = True
            with suppress_status("UNAVAILABLE"):
                call()
                died = False
            if died:
                assert self._server is not None
                assert self._server.wait() == -signal.SIGKILL
                spared.append((self._top / "root" / "died").read_text())
                self.deaths.append(spared[-1])
                self.restart("remove", "removed", "release")
                self.collect_garbage()
                self.check()
            else:
                return

    def check(self) -> None:
        """Everything known is there, nothing else is; on disk and with the daemon too."""
        infos = self.client.list()
        assert {info.name for info in infos} - {self.leaving} == self.known - {self.leaving}
        local = [info for info in infos if not info.name.startswith("lazy")]
        folders = list((self._top / "root" / "snapshots").iterdir())
        assert len(folders) == len(local)
        assert all((folder / "fs").is_dir() for folder in folders)
        in_use = {NAME} if any(info.kind != COMMITTED and info.parent for info in infos) else set()
        mounted = {
            path.name for path in (self._top / "daemon").glob("*/") if not (path / "released").exists()
        }
        assert mounted == in_use

    def _end(self) -> None:
        if self._server is not None:
            self._server.kill()
            self._server.wait()


def _age(info: Any) -> int:
    return -int(info.created_at.ToNanoseconds())


@contextmanager
def suppress_status(code: str) -> Iterator[None]:
    """This status ends the block, others fail."""
    try:
        yield
    except grpc.RpcError as error:
        if not isinstance(error, grpc.Call) or error.code().name != code:
            raise


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    machine.close()


def test_dying_before_any_step(machine: Machine) -> None:
    client = machine.client
    lazy: list[str] = []

    def pull_lazily() -> None:
        """Two lazy layers; containerd takes the names that List tells."""
        parent = lazy[-1] if lazy else ""
        depth = len(lazy) + 1
        with suppress_status("ALREADY_EXISTS"):
            client.prepare(f"lazy {machine.key()}", parent, cri_labels("app", APP, depth))
            pytest.fail("it is not lazy")
        (info,) = client.list(f'labels."containerd.io/snapshot.ref"=={chain_id(APP[:depth])}')
        assert (info.parent, info.kind) == (parent, COMMITTED)
        lazy.append(info.name)
        machine.known.add(info.name)

    machine.insist(pull_lazily)
    assert machine.deaths == ["lazy", "lazy made"]
    machine.insist(pull_lazily)
    machine.check()

    def unpack() -> None:
        """One layer: prepared, filled, committed."""
        key, name = machine.key(), machine.key()
        (mount,) = client.prepare(key)
        (Path(mount.source) / "file").write_text("content")
        client.commit(name, key)
        machine.known.add(name)

    machine.deaths.clear()
    machine.insist(unpack)
    assert machine.deaths == ["make", "create", "created", "answer", "commit", "committed"]
    machine.check()

    def start() -> None:
        """A container's snapshot."""
        key = machine.key()
        client.prepare(key, lazy[-1])
        machine.known.add(key)

    machine.deaths.clear()
    machine.insist(start)
    assert machine.deaths == ["make", "create", "created", "answer"]
    machine.check()
    (container,) = (info.name for info in client.list("kind==active"))

    def remove() -> None:
        """Removal of it, which may be done already."""
        with suppress_status("NOT_FOUND"):
            client.remove(container)

    machine.deaths.clear()
    machine.leaving = container
    machine.insist(remove)
    assert machine.deaths == ["remove", "removed"]
    machine.known.remove(container)
    machine.leaving = ""
    machine.check()

    machine.insist(start, "make", "create", "created", "answer")
    (container,) = (info.name for info in client.list("kind==active"))
    machine.deaths.clear()
    machine.leaving = container
    machine.insist(remove, "remove", "removed")
    assert machine.deaths == ["release"]
    machine.known.remove(container)
    machine.leaving = ""
    machine.check()

    (layer,) = (info.name for info in client.list() if not info.name.startswith("lazy"))
    machine.restart("make", "create", "created", "answer")
    view = client.view("a view", layer)
    assert (Path(view[0].source) / "file").read_text() == "content"
