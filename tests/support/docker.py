"""docker on a machine of containerd's, with none of this machine's configuration."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.support.containerd_node import Node
from tests.support.containers import until

_ROOT: Final = Path(__file__).parents[2]
CONFIG: Final = _ROOT / "deploy" / "docker" / "daemon.json"
PAGE: Final = _ROOT / "docs" / "docker.md"
NAMESPACE: Final = "moby"
"""Where docker keeps its images in containerd."""

_TIMEOUT_S: Final = 240


class Docker:
    """One docker; all it keeps lies below the machine's directory.

    Args:
        machine: has the containerd that it uses.
        programs: the directory with docker and dockerd.
        registry: host and port of a registry that speaks plain HTTP.
    """

    def __init__(self, machine: Node, programs: Path, registry: str) -> None:
        self._machine = machine
        self._programs = programs
        self._top = machine.top / "docker"
        self._top.mkdir()
        self._config = self._top / "daemon.json"
        self._config.write_text(json.dumps(_config(machine, self._top, registry)))

    def start(self) -> None:
        """Start its daemon, and wait until it answers."""
        with (self._machine.top / "log" / "docker").open("ab") as log:
            self._process = subprocess.Popen(
                self._machine.enter(str(self._programs / "dockerd"), "--config-file", str(self._config)),
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        until(self._answers, "dockerd answers")

    def end(self, number: int = signal.SIGTERM) -> None:
        """End its daemon."""
        pid = int(self._machine.inside("cat", str(self._top / "pid")))
        self._machine.inside("kill", f"-{number}", str(pid))
        self._process.wait(timeout=60)

    def restart(self) -> None:
        """Kill its daemon, and start it again."""
        self.end(signal.SIGKILL)
        self.start()

    def __call__(self, *words: str | Path, exit_code: int = 0) -> str:
        """The standard output of `docker WORDS`, once it has ended with `exit_code`."""
        done = self._run(*words)
        said = f"docker {' '.join(map(str, words))}: {done.returncode}\n{done.stdout}{done.stderr}"
        assert done.returncode == exit_code, said
        return done.stdout

    def succeeds(self, *words: str | Path) -> bool:
        """Whether `docker WORDS` ends with 0."""
        return self._run(*words).returncode == 0

    def start_once(self, image: str, *command: str) -> str:
        """The standard output of a command in a new container of an image that is here."""
        return self("run", "--rm", "--network", "none", "--pull", "never", image, *command)

    def _answers(self) -> bool:
        assert self._process.poll() is None, self._machine.log("docker")[-2000:]
        return self.succeeds("version")

    def _run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._machine.enter(str(self._programs / "docker"), *map(str, words)),
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_S,
        )

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": f"{self._machine.programs}:{os.defpath}:/usr/sbin:/sbin",
            "HOME": str(self._top),
            "DOCKER_HOST": f"unix://{self._top}/sock",
        }


@contextmanager
def docker(machine: Node, programs: Path, registry: str) -> Iterator[Docker]:
    """A docker for as long as the block lasts; its containers are removed at the end."""
    made = Docker(machine, programs, registry)
    made.start()
    yield made
    for container in made("ps", "--all", "--quiet").split():
        made("rm", "--force", container)
    made.end()


def containerd_text() -> str:
    """What the page has people add to containerd's configuration."""
    (text,) = re.findall(r"^```toml\n(.*?)^```$", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    return str(text)


def _config(machine: Node, top: Path, registry: str) -> dict[str, object]:
    """What we tell people to write, with paths and comforts of the test."""
    return json.loads(CONFIG.read_text()) | {
        "containerd": str(machine.socket("containerd")),
        "data-root": f"{top}/data",
        "exec-root": "/run/containerd/docker",  # the machine's own, and short: sockets are in it
        "pidfile": f"{top}/pid",
        "hosts": [f"unix://{top}/sock"],
        "insecure-registries": [registry],
        "bridge": "none",
        "userland-proxy": False,
        "iptables": False,
        "ip6tables": False,
        "ip-forward": False,
        "live-restore": True,
        "cgroup-parent": f"/{machine.name}",
    }
