"""Whose end ends a container: its process's own, or that of the daemon which serves its root."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lazyfs.container.supervise import Supervisor
from lazyfs.errors import MountError


@contextmanager
def ending(code: int) -> Iterator[int]:
    """A process that has ended with this exit code, and that nobody has waited for."""
    with subprocess.Popen([sys.executable, "-S", "-c", f"raise SystemExit({code})"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        yield process.pid


@contextmanager
def serving(*, killed: bool) -> Iterator[int]:
    """The descriptor of a process that stands for the daemon."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        descriptor = os.pidfd_open(process.pid)
        if killed:
            process.kill()
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        yield descriptor
        os.close(descriptor)
        process.kill()


@pytest.mark.parametrize(("code", "killed"), [(0, False), (3, False), (0, True)])
def test_a_container_that_ends_by_itself_ends_as_it_likes(code, killed):
    with ending(code) as pid, serving(killed=killed) as server, Supervisor(signal.SIGTERM) as supervisor:
        assert supervisor.wait(pid, None, server) == code


def test_of_a_root_whose_daemon_died_that_is_told_and_not_what_its_processes_made_of_it():
    """Whose pages do not come gets SIGBUS, or an error that may be anything."""
    with (
        ending(1) as pid,
        serving(killed=True) as server,
        Supervisor(signal.SIGTERM) as supervisor,
        pytest.raises(MountError, match="root died"),
    ):
        supervisor.wait(pid, None, server)
