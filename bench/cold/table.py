"""Results for a terminal."""

from collections.abc import Iterator, Sequence
from typing import Final

from bench.cold.record import Record, Series, Start
from bench.measure import QUIET_SHARE
from bench.report import number
from bench.spread import Spread

_COLUMNS = (
    "ready s",
    "lowest - highest",
    "times",
    "pulled s",
    "done s",
    "MB",
    "x touched",
    "requests",
    "CPU s",
    "peak MB",
)

_NO_TIME_S: Final = 0.001


def render(record: Record) -> str:
    """One table for each workload, and what its columns mean."""
    lines = [f"{record.distance}, caches {record.caches}, {record.commit or 'no commit'}, {record.date}"]
    for facts in record.workloads:
        touched = f", {facts.touched_bytes / 1e6:.1f} MB touched" if facts.touched_bytes else ""
        lines += ["", f"{facts.name} ({facts.image_bytes / 1e6:.0f} MB of layers{touched})"]
        lines += rows(record.of(facts.name), facts.touched_bytes)
    return "\n".join([*lines, "", footnote(record)])


def rows(series: Sequence[Series], touched_bytes: int) -> Iterator[str]:
    """The methods of one workload, the first one being the baseline of `times`."""
    width = max((len(one.method) for one in series), default=0)
    yield f"  {'':<{width}}  {_COLUMNS[0]:>8}  {_COLUMNS[1]:>17}" + "".join(f"{c:>10}" for c in _COLUMNS[2:])
    baseline = next((median(one.starts) for one in series if one.starts), 0.0)
    for one in series:
        if one.starts:
            yield f"  {one.method:<{width}}  {_row(one.starts, baseline, touched_bytes)}"
        if one.failure:
            yield f"  {one.method:<{width}}  not measured{' further' if one.starts else ''}: {one.failure}"


def median(starts: Sequence[Start]) -> float:
    """The median time to readiness."""
    return Spread.of([start.ready_s for start in starts]).median


def _row(starts: Sequence[Start], baseline: float, touched_bytes: int) -> str:
    ready = Spread.of([start.ready_s for start in starts])
    completed = [start.completed_s for start in starts if start.completed_s is not None]
    mark = "*" if is_disturbed(starts) else " "
    cells = (
        f"{ready.median / baseline:.2f} x" if baseline else "",
        pulled(_middle([start.pulled_s for start in starts])),
        number(_middle(completed)) if completed else "-",
        f"{_middle([start.down for start in starts]) / 1e6:.1f}",
        f"{_middle([start.down for start in starts]) / touched_bytes:.2f}" if touched_bytes else "-",
        f"{_middle([start.requests for start in starts]):.0f}",
        number(_middle([start.cpu_s for start in starts])),
        f"{_middle([start.peak_bytes for start in starts]) / 1e6:.0f}",
    )
    between = f"{number(ready.low)} - {number(ready.high)}"
    return f"{number(ready.median):>8}{mark} {between:>17}" + "".join(f"{cell:>10}" for cell in cells)


def _middle(values: Sequence[float]) -> float:
    return Spread.of(values).median


def pulled(seconds: float) -> str:
    """A time until something was pulled; a method that does that on the way has none."""
    return number(seconds) if seconds >= _NO_TIME_S else "-"


def is_disturbed(starts: Sequence[Start]) -> bool:
    """Whether others used the machine in a typical start."""
    return Spread.of([start.others_share for start in starts]).median > QUIET_SHARE


def footnote(record: Record) -> str:
    """What the columns and marks mean."""
    worst = max((start.others_share for one in record.series for start in one.starts), default=0.0)
    note = f"\n{record.note}" if record.note else ""
    return (
        "Medians. ready: from asking for the image to a ready container; times: of the first method's;\n"
        "pulled: until the container could be started; done: until it had ended; MB, requests: sent and\n"
        "answered by the registry until then; x touched: what came, compressed or not, by what a start\n"
        "touches; CPU and peak memory: of daemons and commands, without the container.\n"
        f"* others used more than {QUIET_SHARE:.0%} of the machine, in the worst sample {worst:.0%}.{note}"
    )
