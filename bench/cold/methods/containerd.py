"""A containerd of its own, driven by ctr, for methods that plug into it."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import Popen
from typing import Any, Final, Self

from bench.cold.methods.base import Context

_NAMESPACE: Final = "bench"


class Containerd:
    """A containerd that runs; made by `start`."""

    socket: Final = Path("/run/containerd.sock")
    """In the sandbox, whose /run is its own: paths of sockets are short."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @classmethod
    def start(cls, context: Context, *, proxies: Mapping[str, Path] | None = None) -> Self:
        """A containerd without CRI, its state in the scratch folder.

        Args:
            context: where.
            proxies: snapshotters by name, at the sockets where they listen already.

        Raises:
            MethodFailed: it does not start.
        """
        home = context.scratch / "containerd"
        home.mkdir()
        (home / "config.toml").write_text(_configuration(home, proxies or {}))
        context.box.serve(
            "containerd", "--config", home / "config.toml", log=home / "log",
            ready=lambda: "containerd successfully booted" in (home / "log").read_text(errors="replace"),
        )  # fmt: skip
        return cls(context)

    def session(self, snapshotter: str, client: Sequence[str | Path], pull: Sequence[str]) -> "CtrSession":
        """A session over this containerd.

        Args:
            snapshotter: by its name.
            client: the program that pulls.
            pull: its subcommand, without snapshotter and reference.
        """
        return CtrSession(self._context, self.socket, snapshotter, client, pull)


class CtrSession:
    """Pull by a command, run by `ctr run`."""

    def __init__(
        self,
        context: Context,
        socket: Path,
        snapshotter: str,
        client: Sequence[str | Path],
        pull: Sequence[str],
    ) -> None:
        self._context = context
        self._socket = socket
        self._snapshotter = snapshotter
        self._client = client
        self._pull = pull
        self._is_here = False

    def pull(self) -> None:
        if self._is_here:
            return
        words = (*self._client, *self._address(), *self._pull, "--snapshotter", self._snapshotter)
        self._context.box.run(*words, self._context.reference)
        self._is_here = True

    def run(self) -> Popen[bytes]:
        context = self._context
        options = ("--rm", "--net-host", "--snapshotter", self._snapshotter)
        return context.box.start(
            "ctr", *self._address(), "run", *options, *context.environment_options,
            context.reference, context.mark, *context.workload.command,
        )  # fmt: skip

    def remove(self) -> None:
        for words in (
            ("tasks", "kill", "--signal", "KILL"),
            ("tasks", "delete", "--force"),
            ("containers", "delete"),
        ):
            command = ["ctr", *self._address(), *words, self._context.mark]
            subprocess.run(
                self._context.box.command(command),
                env=dict(self._context.box.environment), capture_output=True, check=False,
            )  # fmt: skip

    def _address(self) -> tuple[str, ...]:
        return ("--address", str(self._socket), "--namespace", _NAMESPACE)


def _configuration(home: Path, proxies: Mapping[str, Path]) -> str:
    """As TOML; JSON's strings are TOML's."""
    tables: dict[str, dict[str, Any]] = {
        "grpc": {"address": str(Containerd.socket)},
        "ttrpc": {"address": f"{Containerd.socket}.ttrpc"},
        **{
            f"proxy_plugins.{name}": {"type": "snapshot", "address": str(path)}
            for name, path in proxies.items()
        },
    }
    top = {
        "version": 2,
        "root": str(home / "root"),
        "state": str(home / "state"),
        "disabled_plugins": ["io.containerd.grpc.v1.cri"],
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in top.items()]
    for name, values in tables.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    return "\n".join(lines) + "\n"
