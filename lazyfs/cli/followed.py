"""A part of a command's work that has a process of its own, which ends before the command does."""

import math
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from lazyfs.cli.output import complain
from lazyfs.exit_codes import BUG

_TOLD: Final = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM})
_BEGUN: Final = signal.SIGUSR1
_WATCHED: Final = _TOLD | {signal.SIGCHLD, _BEGUN}
_SI_KERNEL: Final = 0x80  # asm-generic/siginfo.h: a terminal's, which all its processes get
_AGAIN_S: Final = 2.0


def run_followed(work: Callable[[Callable[[], None]], int], most_s: float = math.inf) -> int:
    """Do work in a child process, and wait for its end.

    Orders to end that come to us are passed on to it. Signals to end it as its time is up are repeated, since
    it may run what is deaf to one.

    Args:
        work: gives the exit code; nothing of it is seen here. It is given what to call when that begins whose
            time is counted.
        most_s: seconds after that, when it is ended.

    Returns:
        The exit code; 128 + N if signal N told us to end, or ended it; 0 if its time was up.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    parent = os.getpid()  # asked for by the child, it might be another's
    try:
        pid = os.fork()
        if not pid:
            code = BUG
            try:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
                code = work(partial(os.kill, parent, _BEGUN))
            except Exception as error:  # noqa: BLE001  # as the command's own last line of defence
                complain(f"a bug: {type(error).__name__}: {error}")
            finally:
                os._exit(code)
        return _follow(pid, most_s)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _follow(pid: int, most_s: float) -> int:
    told = 0
    time_is_up = False
    end = math.inf
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            break
        left_s = min(max(end - time.monotonic(), 0.0), 3600.0)
        signalled = signal.sigtimedwait(_WATCHED, left_s)
        if signalled is not None and signalled.si_signo in _TOLD:
            told = signalled.si_signo
            if signalled.si_code != _SI_KERNEL:
                os.kill(pid, told)
        elif signalled is not None and signalled.si_signo == _BEGUN and signalled.si_pid == pid:
            end = time.monotonic() + most_s
        elif signalled is None and time.monotonic() >= end:
            time_is_up = True
            end = time.monotonic() + _AGAIN_S
            os.kill(pid, signal.SIGTERM)
    if told:
        return 128 + told
    if time_is_up:
        return 0
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
