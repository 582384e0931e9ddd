"""What becomes of runtimes that fail, or do not do what they should: stand-ins that are programs."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from lazyfs.container.run import listen_in
from lazyfs.container.runtime import CONSOLE_SOCKET, Runtime
from lazyfs.errors import CommandRefused, ContainerError

WRITE_PID = 'while [ "$1" != --pid-file ]; do shift; done; echo 1 > "$2"'


@pytest.fixture
def console(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listen_in(listener, tmp_path)
        yield listener


def runtime(place: Path, script: str, name: str = "runtime") -> Runtime:
    program = place / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return Runtime(str(program), place / "state", patience_s=0.1)


def test_a_terminal_that_does_not_come_is_not_waited_for_long(tmp_path, console):
    started = runtime(tmp_path, WRITE_PID)
    with pytest.raises(ContainerError, match=r"^the runtime sent no terminal within 0\.1 s$"):
        started.start("name", tmp_path, None, console)
    with socket.socket(socket.AF_UNIX) as connection:  # and says nothing
        connection.connect(str(tmp_path / CONSOLE_SOCKET))
        with pytest.raises(ContainerError, match=r"^the runtime sent no terminal within 0\.1 s$"):
            started.start("name", tmp_path, None, console)


@pytest.mark.parametrize("name", ["runc", "runtime"])
def test_a_failure_is_told_once(tmp_path, console, name, capfd):
    """Without a terminal, what the runtime says goes where the container's errors would: it stands there."""
    failing = runtime(tmp_path, "echo warning >&2; echo exec: permission denied >&2; exit 1", name)
    with pytest.raises(CommandRefused) as caught:
        failing.start("name", tmp_path, None, console)
    assert str(caught.value) == f"{name} cannot start the container: exec: permission denied"
    assert capfd.readouterr().err == ""
    with pytest.raises(ContainerError) as caught:
        failing.start("name", tmp_path, None, None)
    said = {"runc": "it says why above", "runtime": "exit code 1"}
    assert str(caught.value) == f"{name} cannot start the container: {said[name]}"
    assert capfd.readouterr().err == "warning\nexec: permission denied\n"


def test_warnings_of_a_runtime_are_passed_on(tmp_path, console, capfd):
    warning = runtime(tmp_path, f"echo careful >&2; {WRITE_PID}")
    with pytest.raises(ContainerError):  # as it sends no terminal
        warning.start("name", tmp_path, None, console)
    assert capfd.readouterr().err == "careful\n"
