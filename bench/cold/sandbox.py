"""Where clients run: a network, mounts and processes that all end together, however this process ends.

Everything that a method starts lives in one PID namespace. When its first process ends (it reads this
process's pipe), the kernel kills the rest, and with the last process the mounts go.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench.measure import MethodFailed
from tests.support.lab_build import LEAVE_OTHERS

# CHLD ignored: what is orphaned is reaped by the kernel. /run: containerd's shims have their sockets there.
_INIT: Final = f"""
    trap "" CHLD
    mount -t proc proc /proc && {{ {LEAVE_OTHERS}; }} && mount -t tmpfs tmpfs /run && echo up && exec cat
"""
_END_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A sandbox that is up.

    Attributes:
        first: the PID of its first process, as seen from here.
        environment: of all commands.
        daemons: the commands that `serve` started.
    """

    first: int
    environment: Mapping[str, str]
    daemons: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def command(self, command: Sequence[str | Path]) -> list[str]:
        """The command, to run inside."""
        inside = ["nsenter", f"--target={self.first}", "--net", "--mount", "--pid", "--"]
        return [*inside, *map(str, command)]

    def beside(self, command: Sequence[str | Path]) -> list[str]:
        """The command, to run in the same network, but as a part of the measurement."""
        return ["nsenter", f"--target={self.first}", "--net", "--", *map(str, command)]

    def path(self, path: Path) -> Path:
        """A path inside, for this process."""
        return Path(f"/proc/{self.first}/root{path}")

    def run(self, *command: str | Path, timeout_s: float = 600) -> str:
        """What a command inside prints.

        Raises:
            MethodFailed: it cannot be run, fails, or takes too long.
        """
        try:
            done = subprocess.run(
                self.command(command), env=dict(self.environment), stdin=subprocess.DEVNULL,
                capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise MethodFailed(f"{command[0]}: not done after {timeout_s:.0f} s") from None
        if done.returncode:
            words = " ".join(map(str, command[:4]))
            raise MethodFailed(
                f"{words}: exit code {done.returncode}: {(done.stderr or done.stdout)[-500:].strip()}"
            )
        return done.stdout

    def start(self, *command: str | Path, log: Path | None = None) -> subprocess.Popen[bytes]:
        """A command inside; what it says goes to `log`, or to its pipe."""
        if log is None:
            return subprocess.Popen(
                self.command(command), env=dict(self.environment), stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
        with log.open("wb") as file:
            return subprocess.Popen(
                self.command(command), env=dict(self.environment), stdin=subprocess.DEVNULL,
                stdout=file, stderr=file,
            )  # fmt: skip

    def terminate(self, process: subprocess.Popen[bytes]) -> None:
        """Send SIGTERM to a command that was started here, and wait for its end."""
        for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGTERM)
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def serve(self, *command: str | Path, log: Path, ready: Callable[[], bool], most_s: float = 60) -> None:
        """A daemon inside, waited for until it is ready.

        Raises:
            MethodFailed: it ends, or is not ready in time.
        """
        process = self.start(*command, log=log)
        self.daemons.append(process)
        end = time.monotonic() + most_s
        while not ready():
            if process.poll() is not None or time.monotonic() > end:
                said = log.read_text(errors="replace")[-500:].strip()
                raise MethodFailed(f"{Path(command[0]).name} does not start: {said}")
            time.sleep(0.01)


@contextmanager
def sandbox(enter: Callable[[Sequence[str]], list[str]], environment: Mapping[str, str]) -> Iterator[Sandbox]:
    """A sandbox in a network that `enter` prefixes commands for.

    Raises:
        MethodFailed: not root.
    """
    spaces = ("unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "sh", "-c", _INIT)
    keeper = subprocess.Popen(
        enter(spaces), env=dict(environment), start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        assert keeper.stdout is not None
        if keeper.stdout.readline().strip() != b"up":
            raise MethodFailed("no namespaces of its own: this needs root")
        children = Path(f"/proc/{keeper.pid}/task/{keeper.pid}/children").read_text().split()
        yield Sandbox(int(children[0]), environment, daemons)
    finally:
        try:
            keeper.communicate(timeout=_END_S)
        except subprocess.TimeoutExpired:
            keeper.kill()
            keeper.communicate()
        for daemon in daemons:
            daemon.wait()
