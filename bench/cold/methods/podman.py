"""A Podman of its own, for a full pull and for what brings layers by an additional layer store."""

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

from bench.cold.methods.base import Context, Session
from bench.cold.methods.tools import need, say_versions
from bench.cold.store import Store
from bench.cold.workload import Workload

TOOLS = ("podman", "conmon", "runc")


class PodmanSession:
    """`podman pull`, `podman run`, with storage in the scratch folder.

    Args:
        context: where.
        layer_stores: directories of additional layer stores.
    """

    def __init__(self, context: Context, layer_stores: Sequence[Path] = ()) -> None:
        self._context = context
        self._home = context.scratch / "podman"
        self._is_here = False
        self._configure(layer_stores)

    def _configure(self, layer_stores: Sequence[Path]) -> None:
        """Nothing of the machine's configuration is read or written."""
        home = self._home
        (home / ".config" / "containers").mkdir(parents=True)
        (home / "tmp").mkdir()
        stores = json.dumps([f"{store}:ref" for store in layer_stores])  # JSON's strings are TOML's
        written = {
            ".config/containers/policy.json": '{"default": [{"type": "insecureAcceptAnything"}]}',
            "storage.conf": f'[storage]\ndriver = "overlay"\ngraphroot = "{home}/root"\n'
            f'runroot = "{home}/run"\n[storage.options]\nadditionallayerstores = {stores}\n',
            "containers.conf": '[containers]\ndefault_ulimits = ["nofile=1024:4096", "nproc=1024:1024"]\n'
            '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
            f'lock_type = "file"\n[network]\nnetwork_config_dir = "{home}/networks"\n',
            "registries.conf": f'[[registry]]\nlocation = "{self._registry}"\ninsecure = true\n',
        }
        for name, text in written.items():
            (home / name).write_text(text)

    @property
    def _registry(self) -> str:
        return self._context.reference.partition("/")[0]

    def pull(self) -> None:
        if not self._is_here:
            self._context.box.run(*self._command("pull", "--quiet", self._context.reference))
            self._is_here = True

    def run(self) -> Popen[bytes]:
        context = self._context
        options = ("--rm", "--network", "host", "--pull", "never", "--name", context.mark)
        words = (*options, *context.environment_options, context.reference, *context.workload.command)
        return context.box.start(*self._command("run", *words))

    def remove(self) -> None:
        subprocess.run(
            self._context.box.command(self._command("rm", "--force", "--time", "0", self._context.mark)),
            env=dict(self._context.box.environment), capture_output=True, check=False,
        )  # fmt: skip

    def _command(self, *words: str) -> list[str | Path]:
        home = self._home
        configured = [
            f"CONTAINERS_{name}_CONF={home}/{name.lower()}.conf" for name in ("STORAGE", "REGISTRIES")
        ]
        return [
            *("env", f"HOME={home}", f"TMPDIR={home}/tmp", f"CONTAINERS_CONF={home}/containers.conf"),
            *configured,
            *("podman", "--tmpdir", f"{home}/libpod", "--cgroup-manager", "cgroupfs"),
            *("--network-config-dir", f"{home}/networks", *words),
        ]


@dataclass(frozen=True, slots=True)
class FullPodman:
    """`podman pull`, `podman run`."""

    name: str = "full-podman"
    title: str = "full pull: podman pull, podman run"

    def check(self) -> None:
        need(*TOOLS)

    def publish(self, store: Store, workload: Workload) -> str:
        return store.publish_plain(workload)

    @contextmanager
    def session(self, context: Context) -> Iterator[Session]:
        yield PodmanSession(context)

    def warm_up(self, context: Context) -> None:
        say_versions(context.box, *TOOLS)
