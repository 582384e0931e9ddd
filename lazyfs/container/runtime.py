"""An OCI runtime, runc or crun, as a program: it starts a container and leaves it to us."""

import json
import logging
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Final

from msgspec import Struct

from lazyfs.errors import CommandNotFound, CommandRefused, ContainerError
from lazyfs.mount.syscalls import unmount_kernel

_log = logging.getLogger(__name__)

KNOWN: Final = ("runc", "crun")
CONSOLE_SOCKET: Final = "console.sock"
UNIFIED: Final = Path("/sys/fs/cgroup/cgroup.controllers")
"""There where version 2 of control groups is the only one."""

_NOT_FOUND: Final = ("executable file not found", "executable file `", "no such file or directory")
_REFUSED: Final = ("permission denied", "is a directory", "exec format error")


class Runtime(Struct, frozen=True):
    """A runtime with a state directory of its own.

    Attributes:
        program: its path.
        state: where it keeps what it knows of containers.
        rootless: whether it runs in a user namespace that an ordinary user made.
        patience_s: for how long the terminal of a container that was started is waited for.
    """

    program: str
    state: Path
    rootless: bool = False
    patience_s: float = 10.0

    @property
    def name(self) -> str:
        """The program's name."""
        return Path(self.program).name

    def start(
        self, identifier: str, bundle: Path, stdin: IO[bytes] | int | None, console: socket.socket | None
    ) -> tuple[int, int | None]:
        """Start the container of a bundle; its process becomes our child (see `become_subreaper`).

        Args:
            identifier: its name, unique in the machine as that of its cgroup.
            bundle: where its config.json lies, and other files may.
            stdin: its standard input; output and error output are ours.
            console: listening, where it gets a terminal: with CONSOLE_SOCKET in `bundle` as its name.

        Returns:
            Its first process, and the master side of its terminal.

        Raises:
            CommandNotFound, CommandRefused: there is no such program in it, or not to execute.
            ContainerError: it cannot be started.
        """
        pid_file, log, said = bundle / "pid", bundle / "runtime.log", bundle / "runtime.err"
        words = ["run", "--detach", "--pid-file", str(pid_file), "--bundle", str(bundle)]
        with ExitStack() as stack:
            if console is not None:
                place = os.open(bundle, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                stack.callback(os.close, place)
                # Names of sockets end at 108 bytes (unix(7)); this one is short wherever the bundle lies.
                words += ["--console-socket", f"/proc/{os.getpid()}/fd/{place}/{CONSOLE_SOCKET}"]
            # A container without a terminal has what the runtime has as error output.
            errors = stack.enter_context(said.open("wb")) if console is not None else None
            done = subprocess.run(
                [*self._command(), "--log", str(log), "--log-format", "json", *words, identifier],
                stdin=stdin,
                stderr=errors,
                check=False,
            )
        if done.returncode != 0:
            why = _last_error(log) or (_last_line(said) if console else "") or f"exit code {done.returncode}"
            raise _failure(self.name, why, is_told=console is None and self.name in KNOWN)
        if console is None:
            return int(pid_file.read_text()), None
        os.write(2, said.read_bytes())  # warnings
        return int(pid_file.read_text()), _receive(console, self.patience_s)

    def delete(self, identifier: str) -> None:
        """Kill what is left of a container, and forget it; what there is not is no error."""
        subprocess.run(
            [*self._command(), "delete", "--force", identifier],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False,
        )  # fmt: skip

    @contextmanager
    def paused(self, identifier: str) -> Iterator[None]:
        """A container does nothing while the block lasts; a warning says so if that cannot be had.

        A process of its own lets it go on, when we close its standard input, or die.
        """
        resuming = subprocess.Popen(
            ["/bin/sh", "-c", 'read -r _; exec "$@"', "sh", *self._command(), "resume", identifier],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        with resuming:
            done = subprocess.run(
                [*self._command(), "pause", identifier],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False,
            )  # fmt: skip
            if done.returncode:  # it is none of ours to let go on
                resuming.kill()
                if self._is_running(identifier):
                    _log.warning(
                        "the container cannot be paused: what it writes meanwhile may be there in part (%s)",
                        f"{self.name} pause fails; it takes cgroups that are ours to write",
                    )
            yield

    def _is_running(self, identifier: str) -> bool:
        """Whether a container does anything: it has not ended, and nobody has paused it."""
        done = subprocess.run(
            [*self._command(), "state", identifier],
            stdin=subprocess.DEVNULL, capture_output=True, check=False,
        )  # fmt: skip
        with suppress(ValueError):
            told = json.loads(done.stdout)
            return isinstance(told, dict) and told.get("status") == "running"
        return False

    def words_to_exec(self, identifier: str, process: Path) -> list[str]:
        """The command that starts one more process in a container, as a file says, and waits for its end."""
        return [*self._command(), "exec", "--process", str(process), identifier]

    def _command(self) -> list[str]:
        return [self.program, "--root", str(self.state)]


def leave_one_cgroup_version() -> None:
    """Hide version 2 from us where both are mounted: crun refuses such machines."""
    if not UNIFIED.exists():
        with suppress(OSError):  # it is not there, or not ours
            unmount_kernel(b"/sys/fs/cgroup/unified", lazy=True)


def find_runtime(wanted: str, environment: Mapping[str, str]) -> str:
    """The path of a runtime: the one wanted, by name or path, or the first of those known.

    Raises:
        ContainerError: there is none.
    """
    search = environment.get("PATH", os.defpath) + os.pathsep + "/usr/sbin:/sbin"
    for name in [wanted] if wanted else KNOWN:
        found = shutil.which(name, path=search)
        if found:
            return str(Path(found).absolute())
    if wanted:
        raise ContainerError(f"there is no runtime {wanted!r}: name runc, crun, or the path of one")
    raise ContainerError("there is no container runtime: install the package runc or crun")


def write_bundle(bundle: Path, spec: Mapping[str, Any]) -> None:
    """Put a configuration where a runtime looks for it."""
    (bundle / "config.json").write_text(json.dumps(spec))


def _receive(console: socket.socket, patience_s: float) -> int:
    console.settimeout(patience_s)
    try:
        connection, _ = console.accept()
        with connection:
            connection.settimeout(patience_s)
            _message, descriptors, _flags, _address = socket.recv_fds(connection, 4096, 1)
    except TimeoutError:
        raise ContainerError(f"the runtime sent no terminal within {patience_s:g} s") from None
    if not descriptors:
        raise ContainerError("the runtime sent no terminal")
    os.set_inheritable(descriptors[0], False)
    return descriptors[0]


def _failure(name: str, why: str, *, is_told: bool) -> ContainerError:
    """The error that a runtime tells of; `is_told` if it has just told the user, too."""
    words = why.lower()
    kind = ContainerError
    if "exec" in words:
        if any(mark in words for mark in _NOT_FOUND):
            kind = CommandNotFound
        elif any(mark in words for mark in _REFUSED):
            kind = CommandRefused
    return kind(f"{name} cannot start the container: {'it says why above' if is_told else why}")


def _last_line(said: Path) -> str:
    with suppress(OSError):
        return said.read_text(errors="replace").strip().rpartition("\n")[2]
    return ""


def _last_error(log: Path) -> str:
    said = ""
    with suppress(OSError, ValueError):
        for line in log.read_text(errors="replace").splitlines():
            entry = json.loads(line)
            if entry.get("level") in {"error", "fatal"}:
                said = str(entry.get("msg", ""))
    return said
