"""A Docker of its own, whose images are containerd's, with any of its snapshotters."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import Final

from bench.cold.methods.base import Context, Session
from bench.cold.methods.containerd import Containerd
from bench.cold.methods.tools import need, say_versions
from bench.cold.store import Store
from bench.cold.workload import Workload

TOOLS: Final = ("docker", "dockerd", "containerd", "containerd-shim-runc-v2", "runc")
_SOCKET: Final = "unix:///run/docker.sock"
"""In the sandbox, whose /run is its own."""


class DockerSession:
    """`docker pull`, `docker run`.

    Args:
        context: where.
        containerd: keeps the images.
        snapshotter: that it uses, by its name.

    Raises:
        MethodFailed: dockerd does not start.
    """

    def __init__(self, context: Context, containerd: Containerd, snapshotter: str) -> None:
        self._context = context
        self._is_here = False
        home = context.scratch / "docker"
        home.mkdir()
        (home / "daemon.json").write_text(json.dumps(_configuration(home, containerd.socket, snapshotter)))
        context.box.serve(
            "dockerd", "--config-file", home / "daemon.json", log=home / "log",
            ready=lambda: "API listen on" in (home / "log").read_text(errors="replace"),
        )  # fmt: skip

    def pull(self) -> None:
        if not self._is_here:
            self._context.box.run(*_command("pull", "--quiet", self._context.reference))
            self._is_here = True

    def run(self) -> Popen[bytes]:
        context = self._context
        options = ("--rm", "--network", "host", "--pull", "never", "--name", context.mark)
        # What has the mark for its name is taken away at the end, whatever became of dockerd.
        place = ("--cgroup-parent", f"/{context.mark}")
        words = (*options, *place, *context.environment_options, context.reference, *context.workload.command)
        return context.box.start(*_command("run", *words))

    def remove(self) -> None:
        subprocess.run(
            self._context.box.command(_command("rm", "--force", self._context.mark)),
            env=dict(self._context.box.environment), capture_output=True, check=False,
        )  # fmt: skip


def _command(*words: str) -> tuple[str, ...]:
    return ("docker", "--host", _SOCKET, *words)


def _configuration(home: Path, containerd: Path, snapshotter: str) -> dict[str, object]:
    """Containers share the clients' network, which may be this machine's: nothing is set up there."""
    return {
        "features": {"containerd-snapshotter": True},
        "storage-driver": snapshotter,
        "containerd": str(containerd),
        "data-root": str(home / "root"),
        "exec-root": "/run/docker",
        "pidfile": "/run/docker.pid",
        "hosts": [_SOCKET],
        "exec-opts": ["native.cgroupdriver=cgroupfs"],
        "bridge": "none",
        "ip-forward": False,
        "iptables": False,
        "ip6tables": False,
        "userland-proxy": False,
    }


@dataclass(frozen=True, slots=True)
class FullDocker:
    """`docker pull`, `docker run`, by containerd's overlayfs snapshotter.

    Attributes:
        programs: where programs are looked for first.
    """

    programs: Path | None = None
    name: str = "full-docker"
    title: str = "full pull: docker with containerd's overlayfs, docker pull, docker run"

    def check(self) -> None:
        need(*TOOLS, programs=self.programs)

    def publish(self, store: Store, workload: Workload) -> str:
        return store.publish_plain(workload)

    @contextmanager
    def session(self, context: Context) -> Iterator[Session]:
        yield DockerSession(context, Containerd.start(context), "overlayfs")

    def warm_up(self, context: Context) -> None:
        say_versions(context.box, *TOOLS)
