"""Waits for a container's process, and passes on to it what we are told meanwhile."""

import os
import selectors
import signal
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Final, Self

from lazyfs.container.terminal import Terminal
from lazyfs.errors import MountError

_PASSED_ON: Final = (
    *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGCONT, signal.SIGWINCH),
)

_PATIENCE: Final = 3
_FLAGS: Final = 6  # after the name
_PF_EXITING: Final = 0x4  # include/linux/sched.h


class Supervisor:
    """Gathers our signals from its making on, also those that come before there is a container.

    The first process of a container ignores what it has no handler for (pid_namespaces(7)); so the third
    order to end, SIGINT or SIGTERM, kills it.

    A context manager; nothing of it is undone before the end, so that cleaning up is not disturbed.

    Args:
        stop_signal: what the container gets for our SIGTERM.
    """

    def __init__(self, stop_signal: int) -> None:
        self._stop_signal = stop_signal
        self._before: dict[int, object] = {}
        self._orders_to_end = 0

    def __enter__(self) -> Self:
        self._woken, self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._outer = signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        for number in _PASSED_ON:
            self._before[number] = signal.signal(number, _noted)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.set_wakeup_fd(self._outer)
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # it was one before
        os.close(self._woken)
        os.close(self._wake)

    def wait(self, pid: int, terminal: Terminal | None, server: int) -> int:
        """The exit code of our child `pid`, 128 + N if signal N ended it.

        Args:
            pid: the container's first process.
            terminal: its terminal, if it has one.
            server: of the process that serves its root (pidfd_open(2)).

        Raises:
            MountError: that died, whatever became of the container then.
        """
        with selectors.DefaultSelector() as selector:
            process = os.pidfd_open(pid)
            try:
                for descriptor in (process, self._woken, server):
                    selector.register(descriptor, selectors.EVENT_READ)
                if terminal is not None:
                    terminal.register(selector)
                while True:
                    ready = {key.fd for key, _ in selector.select()}
                    if self._woken in ready:
                        self._pass_on(pid, terminal)
                    for descriptor in ready - {process, self._woken, server}:
                        if terminal is not None and descriptor in selector.get_map():
                            terminal.move(descriptor, selector)
                    if process in ready:
                        code = _exit_code(os.waitpid(pid, 0)[1])
                        if not code or not _is_ending(server):
                            return code
                    if process in ready or server in ready:
                        raise MountError("the daemon that serves the container's root died")
            finally:
                os.close(process)

    def _pass_on(self, pid: int, terminal: Terminal | None) -> None:
        for number in os.read(self._woken, 4096):
            if number == signal.SIGWINCH and terminal is not None:
                terminal.resize()
                continue
            self._orders_to_end += number in (signal.SIGINT, signal.SIGTERM)
            passed = self._stop_signal if number == signal.SIGTERM else number
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL if self._orders_to_end >= _PATIENCE else passed)


def _noted(_number: int, _frame: FrameType | None) -> None:
    """The byte in the pipe says it (signal.set_wakeup_fd)."""


def _is_ending(process: int) -> bool:
    """Whether a process, by its descriptor, is dead or dying: what it serves is gone before it is.

    Sources: proc_pid_fdinfo(5), proc_pid_stat(5).
    """
    described = Path(f"/proc/self/fdinfo/{process}").read_text().split()
    try:
        stat = Path(f"/proc/{described[described.index('Pid:') + 1]}/stat").read_text()
    except FileNotFoundError:
        return True
    return bool(int(stat.rpartition(")")[2].split()[_FLAGS]) & _PF_EXITING)


def _exit_code(status: int) -> int:
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)
