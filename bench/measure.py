"""Samples, taken so that they can be compared: methods in turn, other load on the machine noted."""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

TICKS: Final = os.sysconf("SC_CLK_TCK")
CORES: Final = os.cpu_count() or 1
QUIET_SHARE: Final = 0.08
"""What others may use of the machine while it counts as quiet."""


def _nothing() -> None:
    """Prepare nothing."""


@dataclass(frozen=True, slots=True)
class Case:
    """One method of a row.

    Attributes:
        method: its name.
        run: does the work; gives the value, or None where the wall time is the value.
        prepare: done before each sample, untimed.
        helpers: pids of processes that work for it, for its CPU time.
    """

    method: str
    run: Callable[[], float | None]
    prepare: Callable[[], None] = _nothing
    helpers: Callable[[], Iterable[int]] = tuple


@dataclass(frozen=True, slots=True)
class Row:
    """One thing to measure by several methods.

    Attributes:
        name: "find, cold".
        unit: of the values: "s", "MB/CPU-s", "%", "MB".
        cases: the methods; the first is the baseline of ratios.
        exact: values do not vary; one sample is enough.
        note: what is done, or with which command.
    """

    name: str
    unit: str
    cases: Sequence[Case]
    exact: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement.

    Attributes:
        value: in the row's unit.
        wall_s: how long it took.
        cpu_s: CPU seconds of this program, its children and the method's helpers.
        others_share: what all other processes used of the machine meanwhile, 0 to 1.
    """

    value: float
    wall_s: float
    cpu_s: float
    others_share: float


@dataclass(slots=True)
class Measured:
    """A row's samples by method, or why a method has none."""

    row: Row
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


class MethodFailed(Exception):
    """A method cannot be measured here; the message says why."""


def measure(row: Row, repeat: int, *, quiet_wait_s: float, progress: Callable[[str], None]) -> Measured:
    """The samples of a row: one of each method in turn, `repeat` times.

    A method that raises MethodFailed is left out from then on.
    """
    measured = Measured(row)
    for turn in range(1 if row.exact else repeat):
        for case in row.cases:
            if case.method in measured.failures:
                continue
            progress(f"{row.name}: {case.method}, {turn + 1} of {repeat}")
            try:
                case.prepare()
                if not row.exact:
                    wait_until_quiet(quiet_wait_s)
                sample = _sample(case)
            except MethodFailed as failed:
                measured.failures[case.method] = str(failed)
            else:
                measured.samples.setdefault(case.method, []).append(sample)
    return measured


def _sample(case: Case) -> Sample:
    machine, own = busy_s(), _own_cpu_s(case)
    start = time.perf_counter()
    value = case.run()
    wall_s = time.perf_counter() - start
    cpu_s = _own_cpu_s(case) - own
    others_s = busy_s() - machine - cpu_s
    share = others_s / (wall_s * CORES) if wall_s > 5 / TICKS else 0.0
    return Sample(
        value=wall_s if value is None else value,
        wall_s=wall_s,
        cpu_s=cpu_s,
        others_share=min(max(share, 0.0), 1.0),
    )


def busy_s() -> float:
    """CPU seconds that the machine was not idle, since it started."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields
    return (user + nice + system + irq + softirq + steal) / TICKS


def process_cpu_s(pid: int) -> float:
    """CPU seconds of a process so far; 0 if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


def wait_until_quiet(most_s: float) -> None:
    """Wait until others leave the machine alone for half a second, but no longer than `most_s`."""
    end = time.monotonic() + most_s
    while time.monotonic() < end:
        before = busy_s()
        time.sleep(0.5)
        if busy_s() - before <= QUIET_SHARE * 0.5 * CORES:
            return


def _own_cpu_s(case: Case) -> float:
    times = os.times()
    own = times.user + times.system + times.children_user + times.children_system
    return own + sum(process_cpu_s(pid) for pid in case.helpers())
