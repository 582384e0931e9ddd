"""Seeing that a container is ready: one thread that asks again and again until it is."""

import ctypes
import http.client
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from shutil import which
from typing import IO, Final

from bench.cold.workload import Exec, Exit, Http, Line, Tcp, Workload
from bench.measure import MethodFailed

MARK: Final = "LAZYFS_BENCH"
"""An environment variable that tells a container's processes from all others."""
_PAUSE_S: Final = 0.005
_ANSWER_S: Final = 5.0
_KEPT: Final = 4000
_CLONE_NEWNET: Final = 0x40000000


class Watch:
    """Follows a container that was started, until it is ready.

    Args:
        process: the client that stays as long as the container; its pipe is the container's output.
        workload: what it is to be ready for.
        mark: the value of MARK in the container.
        network: the namespace that its addresses are of.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], workload: Workload, mark: str, network: Path
    ) -> None:
        self._process = process
        self._workload = workload
        self._mark = mark
        self._network = network
        self._ready_at: float | None = None
        self._said = b""
        assert process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(process.stdout,), daemon=True)
        self._reader.start()
        self._prober = threading.Thread(target=self._probe, daemon=True)
        self._prober.start()

    def wait(self) -> tuple[float, float | None]:
        """When it was ready, and when it ended if it ends by itself, by the monotonic clock.

        Raises:
            MethodFailed: it failed, or was not ready in time.
        """
        end = time.monotonic() + self._workload.timeout_s
        if self._workload.ends:
            return self._wait_for_end()
        while self._ready_at is None:
            if self._process.poll() is not None:
                raise MethodFailed(f"it ended before it was ready: {self._tail()}")
            if time.monotonic() > end:
                raise MethodFailed(f"not ready after {self._workload.timeout_s:.0f} s: {self._tail()}")
            self._prober.join(0.1)
        return self._ready_at, None

    def close(self) -> None:
        """Forget the container's output, once it has ended."""
        self._reader.join()
        self._prober.join()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _wait_for_end(self) -> tuple[float, float]:
        try:
            code = self._process.wait(self._workload.timeout_s)
        except subprocess.TimeoutExpired:
            raise MethodFailed(f"not done after {self._workload.timeout_s:.0f} s: {self._tail()}") from None
        ended_at = time.monotonic()
        self._reader.join()
        ready = self._workload.ready
        if isinstance(ready, Exit):
            self._ready_at = ended_at
        if code != (ready.code if isinstance(ready, Exit) else 0):
            raise MethodFailed(f"it ended with code {code}: {self._tail()}")
        if self._ready_at is None:
            raise MethodFailed(f"it never said that it is ready: {self._tail()}")
        return self._ready_at, ended_at

    def _tail(self) -> str:
        return self._said.decode(errors="replace").strip()[-500:]

    def _read(self, output: IO[bytes]) -> None:
        ready = self._workload.ready
        for line in output:
            if isinstance(ready, Line) and self._ready_at is None and ready.text.encode() in line:
                self._ready_at = time.monotonic()
            self._said = (self._said + line)[-_KEPT:]

    def _probe(self) -> None:
        ready = self._workload.ready
        if not isinstance(ready, Http | Tcp | Exec):
            return
        enter_network(self._network)
        while self._process.poll() is None and not self._asks(ready):
            time.sleep(_PAUSE_S)

    def _asks(self, ready: Http | Tcp | Exec) -> bool:
        match ready:
            case Http():
                is_ready = answers_http(ready)
            case Tcp():
                is_ready = answers_tcp(ready)
            case Exec():
                is_ready = answers_inside(ready.command, self._mark)
        if is_ready:
            self._ready_at = time.monotonic()
        return is_ready


def answers_http(ready: Http) -> bool:
    """Whether there is an answer below 400."""
    connection = http.client.HTTPConnection(ready.host, ready.port, timeout=_ANSWER_S)
    try:
        connection.request("GET", ready.path)
        answer = connection.getresponse()
        answer.read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return answer.status < 400


def answers_tcp(ready: Tcp) -> bool:
    """Whether a connection is made and what is expected comes back."""
    try:
        with socket.create_connection((ready.host, ready.port), timeout=_ANSWER_S) as connection:
            connection.sendall(ready.send)
            said = b""
            while ready.expect not in said:
                piece = connection.recv(4096)
                if not piece:
                    return False
                said += piece
    except OSError:
        return False
    return True


def answers_inside(command: Sequence[str], mark: str) -> bool:
    """Whether a command in the namespaces of the marked container, as its user, ends with 0."""
    pid = marked(mark)
    if pid is None:
        return False
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    uid, gid = (
        next(line.split()[1] for line in status.splitlines() if line.startswith(key))
        for key in ("Uid:", "Gid:")
    )
    nsenter = which("nsenter") or "nsenter"
    inside = [
        nsenter,
        f"--target={pid}",
        "--all",
        "--root",
        "--wd",
        f"--setuid={uid}",
        f"--setgid={gid}",
        "--",
    ]
    # The command is found by the container's PATH, nsenter by ours.
    done = subprocess.run(
        [*inside, *command], env=dict(entry.split(b"=", 1) for entry in environment if b"=" in entry),
        stdin=subprocess.DEVNULL, capture_output=True, check=False,
    )  # fmt: skip
    return done.returncode == 0


def marked(mark: str) -> int | None:
    """The oldest process with the mark in its environment, as seen from here."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return min(found, default=None)


def enter_network(namespace: Path) -> None:
    """Put this thread, and no other, into a network namespace.

    Raises:
        OSError: not allowed.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    with namespace.open("rb") as file:
        if libc.setns(file.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
