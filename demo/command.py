"""The real command line, and programs inside a tree, as subprocesses."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo import host, image

TIMEOUT_S = 300


class DemoFailed(Exception):
    """Something is not as it must be."""


@dataclass(frozen=True, slots=True)
class Lazyfs:
    """The installed `lazyfs`, away from the user's own configuration.

    Attributes:
        home: a directory that stands for the user's home.
        cache: the directory for `--cache-dir`.
    """

    home: Path
    cache: Path

    def __call__(self, command: str, *arguments: str | Path) -> str:
        """What the command prints.

        Raises:
            DemoFailed: it ended with another exit code than 0.
        """
        executable = Path(sys.executable).with_name("lazyfs")
        return _run([executable, command, *arguments, "--cache-dir", self.cache], self._environment())

    def stats(self, mount_point: Path) -> dict[str, Any]:
        """The statistics of a mount."""
        answer: dict[str, Any] = json.loads(self("stats", mount_point, "--json"))
        return answer

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("LAZYFS_", "XDG_"))}
        runtime = self.home / "run"
        runtime.mkdir(mode=0o700, parents=True, exist_ok=True)
        return kept | {"HOME": str(self.home), "XDG_RUNTIME_DIR": str(runtime)}


def run_program(root: Path) -> dict[str, Any]:
    """What the image's program prints when it runs from the tree `root`.

    Root enters the tree with chroot. Others cannot, so they start the tree's own dynamic loader by its path,
    and tell Python where its library is.
    """
    arguments = [str(image.RECORD_START), str(image.RECORD_SIZE)]
    environment = {
        "PATH": os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    if os.geteuid() == 0:
        command = ["chroot", str(root), str(host.interpreter()), f"/{image.PROGRAM}"]
    else:
        environment["PYTHONHOME"] = str(_below(root, Path(sys.base_prefix)))
        libraries = host.shared_libraries([host.interpreter()])
        folders = sorted({str(_below(root, library.resolve().parent)) for library in libraries})
        command = [
            # Between fork and exec this process stands still, and the registry in it: the first exec must not
            # need a byte of the mount.
            "env",
            *(str(_below(root, host.loader().resolve())), "--library-path", ":".join(folders)),
            *(str(_below(root, host.interpreter())), str(root / image.PROGRAM)),
        ]
    answer: dict[str, Any] = json.loads(_run([*command, *arguments], environment))
    return answer


def unmount_by_force(mount_point: Path) -> None:
    """Take away whatever is mounted at `mount_point`, however it got there."""
    command = ["umount", "--lazy"] if os.geteuid() == 0 else ["fusermount3", "-u", "-z"]
    while mount_point.is_mount():
        subprocess.run([*command, mount_point], check=True, capture_output=True)


def _below(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")


def _run(command: Sequence[str | Path], environment: dict[str, str]) -> str:
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        try:
            output, complaint = process.communicate(timeout=TIMEOUT_S)
        except BaseException:
            # Let it take back what it began: a mount whose command is killed may still appear later.
            process.send_signal(signal.SIGINT)
            raise
    if process.returncode:
        words = " ".join(str(word) for word in command)
        raise DemoFailed(f"{words}: exit code {process.returncode}\n{output}{complaint}")
    return output
