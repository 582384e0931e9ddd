"""The threads that wait for our answers, as /proc shows them."""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
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
    return bool(int(_status(thread).get("SigPnd", "0"), 16) & _KILL)


def container_namespace(thread: int) -> int | None:
    """The process in whose user namespace a container is to run whose root a thread is just mounting.

    While containers/storage mounts that, it has a copy of itself sleep in the namespace, by which it shows
    layers of its own (pkg/idmap, `CreateUsernsProcess`): forked by the process that mounts, or by its parent
    where the mount has a process of its own (drivers/overlay/mount.go). The copy runs no other program; so
    nothing else that such a process starts is taken for it.

    Args:
        thread: as for `is_killed`.

    Returns:
        The process, the one begun last if there are more; None if there is none, or it cannot be seen.
    """
    status = _status(thread)
    for parent in (int(status.get("Tgid", "0")), int(status.get("PPid", "0"))):
        command = _command_line(parent)
        copies = [child for child in _children(parent) if _command_line(child) == command]
        elsewhere = [copy for copy in copies if _namespace(copy) not in {None, _namespace(os.getpid())}]
        if command and elsewhere:
            return max(elsewhere, key=_started)
    return None


def _status(thread: int) -> dict[str, str]:
    """What proc_pid_status(5) tells; nothing of a thread that cannot be seen."""
    with suppress(OSError):
        text = Path(f"/proc/{thread}/status").read_text(errors="replace")
        return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    return {}


def _children(process: int) -> Iterator[int]:
    """Which its threads have forked (CONFIG_PROC_CHILDREN)."""
    for place in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):
            yield from map(int, place.read_text().split())


def _command_line(process: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_bytes()
    return b""


def _namespace(process: int) -> str | None:
    """What names its user namespace; None if it cannot be seen."""
    with suppress(OSError):
        return str(Path(f"/proc/{process}/ns/user").readlink())
    return None


def _started(process: int) -> int:
    """When, in ticks since the boot (proc_pid_stat(5), field 22)."""
    with suppress(OSError):
        return int(Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()[19])
    return 0
