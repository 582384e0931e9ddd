"""A machine of its own for containerd: it, the snapshotter and the daemon, in private namespaces.

Mounts and processes live in a mount and a process namespace whose first process ends with the test; what was
killed or forgotten in them ends then too.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import trio

from lazyfs.errors import LazyfsError
from lazyfs.oci.chain import ChainOrder
from lazyfs.service.client import ServiceClient
from tests.support.containerd_config import config_text
from tests.support.containerd_release import Release
from tests.support.cri import Cri, connected_cri
from tests.support.lab_build import LEAVE_OTHERS
from tests.support.runner import executable
from tests.support.snapshot_client import SnapshotClient, connected

PROBE = "probe-"
"""How keys of snapshots begin that are made to see whether one can be made; ctr has them kept for ever."""

PROGRAMS = ("daemon", "snapshotter", "containerd")
_START_S = 60.0
_PATH = f"{os.defpath}:/usr/sbin:/sbin"


class Node:
    """The machine.

    Args:
        top: an empty directory; its path is short, for sockets.
        release: which containerd.
        registry: host and port of the registry, which speaks plain HTTP.
        sandbox: the image of pod sandboxes.
        environment: more for the daemon, as LAZYFS_CACHE_DIR.
        plugin: the socket that containerd calls, if it is not the snapshotter's own.
        more: for containerd's configuration, as a page of ours has it.
        driver: of the daemon.
    """

    def __init__(
        self,
        top: Path,
        release: Release,
        registry: str,
        sandbox: str,
        environment: Mapping[str, str] | None = None,
        plugin: Path | None = None,
        more: str = "",
        driver: str = "auto",
    ) -> None:
        self.top = top
        self._driver = driver
        self.name = f"lazyfs-{os.getpid()}-{top.name}"
        self._release = release
        self._environment = dict(environment or {})
        self._processes: dict[str, tuple[subprocess.Popen[bytes], int]] = {}
        self._stack = ExitStack()
        self.know(registry)
        called = plugin or self.socket("snapshotter")
        config = config_text(release.config_version, top, called, self.snapshots_root, sandbox)
        own = more.replace("/run/lazyfs/snapshotter.sock", str(called))
        (top / "config.toml").write_text(f"{config}\n{own}")
        (top / "log").mkdir()

    def know(self, registry: str) -> None:
        """Say that a registry, host and port, speaks plain HTTP."""
        hosts = self.top / "certs.d" / registry
        hosts.mkdir(parents=True)
        (hosts / "hosts.toml").write_text(f'server = "http://{registry}"\n[host."http://{registry}"]\n')

    @property
    def programs(self) -> Path:
        """The directory of containerd's programs."""
        return self._release.programs

    def socket(self, program: str) -> Path:
        return self.top / ("sock" if program == "containerd" else f"{program}.sock")

    @property
    def snapshots_root(self) -> Path:
        return self.top / "snapshotter"

    def open(self) -> None:
        """Make the namespaces and start everything."""
        self._init = subprocess.Popen(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sleep", "infinity"]
        )
        self._first = _child(self._init.pid)
        self.inside("sh", "-c", LEAVE_OTHERS)
        self.inside("mkdir", "-p", "/run/containerd")
        self.inside("mount", "-t", "tmpfs", "none", "/run/containerd")
        self.snapshots: SnapshotClient = self._stack.enter_context(connected(self.socket("snapshotter")))
        containerd, images = self.socket("containerd"), self.socket("images")
        self.cri: Cri = self._stack.enter_context(connected_cri(containerd, self.name))
        self.kubelet: Cri = self._stack.enter_context(connected_cri(containerd, self.name, images))
        self.start("daemon")
        self.start("snapshotter")
        self.snapshots.list()  # containerd would back off from a snapshotter that is not there yet
        self.start("containerd")
        self.cri.images()  # waits for it
        # One that dies before it was ready for the first time is not started again.
        trio.run(ServiceClient(self.socket("daemon")).mounts)

    def close(self) -> None:
        """End everything, whatever state it is in."""
        self._stack.close()
        os.kill(self._init.pid, signal.SIGKILL)
        self._init.wait()
        for process, _ in self._processes.values():
            process.wait()
        _remove_cgroups(self.name)

    def start(self, program: str) -> None:
        """Start one of the programs."""
        log = (self.top / "log" / program).open("ab")
        with log:
            process = subprocess.Popen(
                self.enter(*self._command(program)),
                env={"PATH": f"{self._release.programs}:{_PATH}", **self._variables(program)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._processes[program] = process, _child(process.pid)

    def kill(self, program: str, number: int = signal.SIGKILL) -> None:
        """End one of the programs; it is gone afterwards."""
        process, pid = self._processes.pop(program)
        os.kill(pid, number)
        process.wait(timeout=60)

    def restart(self, program: str, number: int = signal.SIGKILL) -> None:
        """End one of the programs and start it again; the daemon's "worker" comes back by itself."""
        if program == "worker":
            self.kill_worker()
            return
        self.kill(program, number)
        self.start(program)

    def kill_worker(self) -> None:
        """Kill the process that serves the data; its keeper starts another."""
        os.kill(_child(self._processes["daemon"][1]), signal.SIGKILL)

    def wait_until_ready(self) -> None:
        """Wait until all answer, and containerd reaches the snapshotter again."""
        deadline = time.monotonic() + _START_S
        while True:
            try:
                trio.run(ServiceClient(self.socket("daemon")).mounts)
                self.cri.images()
                self._call_snapshotter()
            except (AssertionError, grpc.RpcError, LazyfsError):
                assert time.monotonic() < deadline, "they do not come back"
                time.sleep(0.05)
            else:
                return

    def log(self, program: str) -> str:
        """What a program has logged."""
        return (self.top / "log" / program).read_text(errors="replace")

    def inside(self, *command: str) -> str:
        """The standard output of a command in the machine."""
        done = subprocess.run(
            self.enter(*command),
            check=False,
            capture_output=True,
            text=True,
            timeout=240,
            env={"PATH": f"{self._release.programs}:{_PATH}"},
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def ctr(self, *arguments: str, namespace: str = "k8s.io") -> str:
        """The standard output of containerd's own client."""
        words = ("ctr", "--address", str(self.socket("containerd")), "--namespace", namespace)
        return self.inside(*words, *arguments)

    def remote_pull(self, client: Sequence[str], image: str, namespace: str) -> None:
        """Pull by one of the clients that other snapshotters brought: ctr-remote or soci, by its command."""
        self.inside(
            *(*client, "--address", str(self.socket("containerd")), "--namespace", namespace),
            *("image", "rpull", "--plain-http", "--snapshotter", "lazyfs", image),
        )

    def collect_garbage(self) -> None:
        """Have containerd collect garbage, and wait until it has; it does not look unless something went."""
        self._call_snapshotter()
        self.ctr("leases", "rm", "--sync", self.ctr("leases", "create").strip())

    def _call_snapshotter(self) -> None:
        """Have containerd call the snapshotter; a list of nothing it would answer by itself."""
        key = f"{PROBE}{time.monotonic_ns()}"
        snapshots = ("snapshots", "--snapshotter", "lazyfs")
        self.ctr(*snapshots, "prepare", key)
        self.ctr(*snapshots, "rm", key)

    def wait_until_lazy(self, order: ChainOrder) -> None:
        """Wait until the daemon has an index of an image."""
        client = ServiceClient(self.socket("daemon"))
        deadline = time.monotonic() + _START_S
        while not trio.run(client.assess, order).lazy:
            assert time.monotonic() < deadline, "no index was made"
            time.sleep(0.1)

    def mounts(self) -> list[str]:
        """The daemon's mounts of image chains."""
        folder = f"{self.top}/lazyfs/mounts/"
        lines = self.inside("cat", "/proc/self/mountinfo").splitlines()
        points = [line.split()[4] for line in lines]
        return sorted({point.removeprefix(folder) for point in points if point.startswith(folder)})

    def blobs(self) -> dict[str, int]:
        """The sizes of what is in containerd's content store, by digest."""
        folder = self.top / "root" / "io.containerd.content.v1.content" / "blobs" / "sha256"
        return (
            {f"sha256:{path.name}": path.stat().st_size for path in folder.iterdir()}
            if folder.is_dir()
            else {}
        )

    def pulled_layers(self, image: str) -> list[str]:
        """The compressed digests of an image that was pulled, lazily or not, from the bottom."""
        label = "containerd.io/snapshot/cri.layer-digest"
        wanted = f'labels."containerd.io/snapshot/cri.image-ref"=="{image}",kind==committed'
        return [info.labels[label] for info in self.snapshots.list(wanted)]

    def directories(self) -> list[str]:
        """The ids of snapshots that have a directory."""
        return sorted(path.name for path in (self.snapshots_root / "snapshots").iterdir())

    def _command(self, program: str) -> Sequence[str]:
        if program == "containerd":
            return str(self._release.programs / "containerd"), "--config", f"{self.top}/config.toml"
        lazyfs = executable()
        if program == "daemon":
            return (
                *(lazyfs, "daemon", "--root", f"{self.top}/lazyfs", "--socket", str(self.socket("daemon"))),
                *("--cache-dir", f"{self.top}/cache", "--log-level", "info", "--linger", "0"),
                *("--driver", self._driver),
            )
        return (
            *(lazyfs, "snapshotter", "--root", str(self.snapshots_root), "--log-level", "info"),
            *("--socket", str(self.socket("snapshotter")), "--daemon", str(self.socket("daemon"))),
            *("--image-service", str(self.socket("images")), "--containerd", str(self.socket("containerd"))),
        )

    def _variables(self, program: str) -> dict[str, str]:
        home = self.top / "home"
        home.mkdir(exist_ok=True)
        own = {"HOME": str(home), "LAZYFS_HOSTS_DIR": f"{self.top}/certs.d"}
        return own | self._environment if program != "containerd" else {"HOME": str(home)}

    def enter(self, *command: str) -> list[str]:
        """The command by which a command is run in the machine."""
        return ["nsenter", "--target", str(self._first), "--mount", "--pid", "--", *command]


@contextmanager
def node(
    top: Path,
    release: Release,
    registry: str,
    sandbox: str,
    *,
    plugin: Path | None = None,
    more: str = "",
    driver: str = "auto",
    **environment: str,
) -> Iterator[Node]:
    """A machine for as long as the block lasts."""
    top.mkdir(parents=True)
    made = Node(top, release, registry, sandbox, environment, plugin, more, driver)
    made.open()
    try:
        yield made
        made.cri.remove_pods()
    finally:
        made.close()


def _child(pid: int) -> int:
    """The one child of a process, waited for."""
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if children:
            return int(children[0])
        time.sleep(0.005)
    raise AssertionError(f"process {pid} has started nothing")


def _remove_cgroups(name: str) -> None:
    """Remove the cgroups that killed containers left, in every hierarchy."""
    for top in Path("/sys/fs/cgroup").glob(f"*/{name}"):
        for path, _, _ in os.walk(top, topdown=False):
            _remove_cgroup(Path(path))


def _remove_cgroup(path: Path) -> Any:
    for _ in range(200):  # until the kernel has seen the last of its processes off
        try:
            return path.rmdir()
        except OSError:
            time.sleep(0.01)
    return path.rmdir()
