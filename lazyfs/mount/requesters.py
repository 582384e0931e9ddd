"""The threads that wait for our answers, as /proc shows them."""

import signal
from pathlib import Path
from typing import Final

_KILL: Final = 1 << signal.SIGKILL - 1


def is_killed(thread: int) -> bool:
    """Whether a thread is to die as soon as it wakes; False if it cannot be seen.

    Every signal that ends a process (but for those that dump core, which end it after the wait) becomes a
    pending SIGKILL of each of its threads (kernel/signal.c, `complete_signal`); SigPnd in
    proc_pid_status(5).

    Args:
        thread: its number; 0 for one outside our PID namespace.
    """
    try:
        status = Path(f"/proc/{thread}/status").read_text(errors="replace")
    except OSError:
        return False
    pending = next((line for line in status.splitlines() if line.startswith("SigPnd:")), "SigPnd: 0")
    return bool(int(pending.split()[1], 16) & _KILL)
