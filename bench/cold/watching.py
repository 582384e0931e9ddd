"""What the processes of a start use: looked at five times a second, because some of them end on the way."""

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum, auto
from pathlib import Path
from typing import Final, NamedTuple

from bench.measure import TICKS

_LOOK_S: Final = 0.2
_PROC: Final = Path("/proc")


class Use(NamedTuple):
    """What programs of one name have used.

    Attributes:
        name: of the program.
        cpu_s: CPU seconds.
        peak_bytes: the most memory that was resident; of several processes, added.
    """

    name: str
    cpu_s: float
    peak_bytes: int


class _Place(Enum):
    METHOD = auto()
    CONTAINER = auto()
    BENCH = auto()


class _Seen(NamedTuple):
    name: str
    place: _Place
    cpu_s: float
    peak_bytes: int


class Watcher:
    """Looks at this process and all its descendants; made by `watching`.

    Args:
        first: the first process of a PID namespace: what is in there belongs to the method, what is in
            namespaces below it to the container, everything else to the measurement.
    """

    def __init__(self, first: int) -> None:
        self._namespace = _namespace(first)
        self._own_namespace = _namespace(os.getpid())
        self._first = first
        self._before: dict[int, float] = {}
        self._seen: dict[int, _Seen] = {}

    @property
    def uses(self) -> list[Use]:
        """Of the method's daemons and commands, by their names."""
        return _by_name(
            Use(seen.name, seen.cpu_s, seen.peak_bytes)
            for seen in self._seen.values()
            if seen.place is _Place.METHOD
        )

    @property
    def own_s(self) -> float:
        """CPU seconds of everything that has to do with the measurement."""
        return sum(seen.cpu_s for seen in self._seen.values())

    def begin(self) -> None:
        """Forget what was used before."""
        for pid, (_, cpu_s) in _descendants().items():
            self._before[pid] = cpu_s
            with suppress(OSError):
                if self._place(pid) is _Place.METHOD:
                    (_PROC / str(pid) / "clear_refs").write_text("5")  # VmHWM begins anew

    def look(self) -> None:
        """See what was used so far."""
        for pid, (name, cpu_s) in _descendants().items():
            with suppress(OSError, ValueError):
                known = self._seen.get(pid)
                place = known.place if known else self._place(pid)
                peak = _peak_bytes(pid) if place is _Place.METHOD else 0
                self._seen[pid] = _Seen(name, place, cpu_s - self._before.get(pid, 0.0), peak)

    def _place(self, pid: int) -> _Place:
        namespace = _namespace(pid)
        if pid == self._first or namespace == self._own_namespace:
            return _Place.BENCH
        return _Place.METHOD if namespace == self._namespace else _Place.CONTAINER


@contextmanager
def watching(first: int) -> Iterator[Watcher]:
    """A watcher, at work until the end of the block; complete after it.

    A process that came and went between two looks is missing; of one that ended,
    what it did after the last.
    """
    watcher = Watcher(first)
    watcher.begin()
    ended = threading.Event()

    def look_on() -> None:
        while not ended.wait(_LOOK_S):
            watcher.look()

    thread = threading.Thread(target=look_on, daemon=True)
    thread.start()
    try:
        yield watcher
    finally:
        ended.set()
        thread.join()
        watcher.look()


def _namespace(pid: int) -> str:
    return str((_PROC / str(pid) / "ns" / "pid").readlink())


def _descendants() -> dict[int, tuple[str, float]]:
    """Names and CPU seconds of this process and all below it."""
    processes: dict[int, tuple[str, float]] = {}
    children: dict[int, list[int]] = {}
    for entry in os.scandir(_PROC):
        if entry.name.isdecimal():
            with suppress(OSError):
                head, _, rest = (_PROC / entry.name / "stat").read_text(errors="replace").rpartition(")")
                fields = rest.split()
                processes[int(entry.name)] = (
                    head.partition("(")[2],
                    (int(fields[11]) + int(fields[12])) / TICKS,
                )
                children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, open_ = {}, [os.getpid()]
    while open_:
        pid = open_.pop()
        if pid in processes:
            found[pid] = processes[pid]
            open_ += children.get(pid, [])
    return found


def _peak_bytes(pid: int) -> int:
    for line in (_PROC / str(pid) / "status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return 0


def _by_name(uses: Iterable[Use]) -> list[Use]:
    """The uses of equally named programs, added."""
    added: dict[str, Use] = {}
    for use in uses:
        so_far = added.get(use.name, Use(use.name, 0.0, 0))
        added[use.name] = Use(
            use.name, round(so_far.cpu_s + use.cpu_s, 2), so_far.peak_bytes + use.peak_bytes
        )
    return [added[name] for name in sorted(added)]
