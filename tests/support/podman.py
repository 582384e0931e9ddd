"""podman on storage of its own, with none of the machine's configuration."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp

from tests.support.containers import until
from tests.support.mounts import mounts_below, unmount_lazily
from tests.support.podman_release import Release

TIMEOUT_S = 240


class Podman:
    """One podman; what it keeps and mounts lies below one directory.

    Its cache of where blobs are known to be is the machine's, which nothing can change.

    Args:
        top: an empty directory that a container's users may pass. Its path is short: where it is long, conmon
            does not tell podman of a container's end, and podman waits for 20 s.
        release: which podman.
        registries: hosts with ports that speak plain HTTP.
        layer_stores: directories of additional layer stores, looked into by image and layer.
        auth_helper: a program that is told the credentials of pulls.

    Attributes:
        storage: where its layers are.
    """

    def __init__(
        self,
        top: Path,
        release: Release,
        *,
        registries: Sequence[str] = (),
        layer_stores: Sequence[Path] = (),
        auth_helper: Path | None = None,
    ) -> None:
        self.storage = top / "storage"
        self._top = top
        self._program = release.programs / "podman"
        policies = top / "home" / ".config" / "containers"
        policies.mkdir(parents=True)
        (policies / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        (top / "storage.conf").write_text(_storage_text(top, layer_stores))
        (top / "containers.conf").write_text(_containers_text(top, release))
        helper = f'additional-layer-store-auth-helper = "{auth_helper}"\n' if auth_helper else ""
        (top / "registries.conf").write_text(helper + "".join(map(_registry_text, registries)))
        (top / "auth.json").write_text("{}")
        for folder in ("tmp", "hooks"):
            (top / folder).mkdir()

    def run(self, *words: str | Path, exit_code: int = 0) -> subprocess.CompletedProcess[str]:
        """What `podman WORDS` said, once it has ended with `exit_code`."""
        done = subprocess.run(
            self.command(*words),
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=TIMEOUT_S,
        )
        assert done.returncode == exit_code, (
            f"podman {' '.join(map(str, words))}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
        )
        return done

    def talk(self, *words: str | Path) -> subprocess.Popen[str]:
        """`podman WORDS`, begun, to be talked to."""
        return subprocess.Popen(
            self.command(*words),
            env=self.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def pull(self, reference: str, *options: str) -> str:
        """Pull an image; what was said on the way, for warnings."""
        return self.run("pull", "--quiet", *options, reference).stderr

    def start(self, reference: str, *command: str) -> str:
        """The standard output of a command in a new container of an image that is here."""
        return self.run("run", "--rm", "--network", "none", "--pull", "never", reference, *command).stdout

    def rmi(self, *references: str) -> str:
        """Remove images; what was said on the way, for warnings."""
        return self.run("rmi", *references).stderr

    def layers(self) -> list[Path]:
        """The directories of the layers that the overlay driver has."""
        file = self.storage / "overlay-layers" / "layers.json"
        layers = json.loads(file.read_text()) if file.exists() else []
        return [self.storage / "overlay" / layer["id"] for layer in layers]

    def command(self, *words: str | Path) -> list[str]:
        """How a subcommand of it is run, in `environment()`."""
        # Not --root: podman forgets the storage's options then.
        return [
            *(str(self._program), "--tmpdir", str(self._top / "libpod"), "--cgroup-manager", "cgroupfs"),
            *("--events-backend", "file", "--network-config-dir", str(self._top / "networks")),
            *("--hooks-dir", str(self._top / "hooks"), *map(str, words)),
        ]

    def environment(self) -> dict[str, str]:
        """All that it is told beside its arguments."""
        return {
            "PATH": f"{os.defpath}:/usr/sbin:/sbin",
            "HOME": str(self._top / "home"),
            "TMPDIR": str(self._top / "tmp"),
            "CONTAINERS_CONF": str(self._top / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(self._top / "storage.conf"),
            "CONTAINERS_REGISTRIES_CONF": str(self._top / "registries.conf"),
            "REGISTRY_AUTH_FILE": str(self._top / "auth.json"),
            "PODMAN_IGNORE_CGROUPSV1_WARNING": "1",
        }

    def close(self) -> None:
        """End its containers, take away its mounts and its directory, whatever state they are in."""
        # Not by podman: without its layer store it does nothing.
        for container in (self.storage / "overlay-containers").glob("[0-9a-f]" * 64):
            command = ["runc", "delete", "--force", container.name]
            subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT_S)
        until(self._ended, f"processes of {self._top} end")
        for point in mounts_below(self._top):
            unmount_lazily(point)
        shutil.rmtree(self._top)

    def _ended(self) -> bool:
        """Whether it has no process; those it has are killed."""
        ours = [pid for pid in _pids() if bytes(self._top) + b"/" in _command_line(pid)]
        for pid in ours:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not ours


@contextmanager
def podman(
    release: Release,
    *,
    registries: Sequence[str] = (),
    layer_stores: Sequence[Path] = (),
    auth_helper: Path | None = None,
) -> Iterator[Podman]:
    """A podman for as long as the block lasts."""
    top = Path(mkdtemp(prefix="lazyfs-"))
    top.chmod(0o755)
    made = Podman(top, release, registries=registries, layer_stores=layer_stores, auth_helper=auth_helper)
    try:
        yield made
    finally:
        made.close()


def _storage_text(top: Path, layer_stores: Sequence[Path]) -> str:
    stores = json.dumps([f"{store}:ref" for store in layer_stores])  # JSON's strings are TOML's
    return f'[storage]\ndriver = "overlay"\ngraphroot = "{top}/storage"\nrunroot = "{top}/run"\n' + (
        f"[storage.options]\nadditionallayerstores = {stores}\n" if layer_stores else ""
    )


def _containers_text(top: Path, release: Release) -> str:
    return (
        '[containers]\ndefault_ulimits = ["nofile=1024:4096", "nproc=1024:1024"]\n'
        '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\n'
        'events_logger = "file"\nlock_type = "file"\n'
        f'image_copy_tmp_dir = "{top}/tmp"\nhelper_binaries_dir = ["{release.programs}"]\n'
        f'[network]\nnetwork_config_dir = "{top}/networks"\n'
    )


def _registry_text(host: str) -> str:
    return f'[[registry]]\nlocation = "{host}"\ninsecure = true\n'


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def _command_line(pid: int) -> bytes:
    """What a process was started with; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
