"""Two results side by side: what became faster, slower, or cannot be told apart."""

from collections.abc import Iterator, Sequence
from typing import Final

from bench.cold.record import Record, Start
from bench.cold.statistics import bootstrap_ratio
from bench.cold.table import is_disturbed
from bench.report import number
from bench.spread import Spread

_CONFIDENCE: Final = 0.95


def render_comparison(first: Record, second: Record) -> str:
    """What two runs have in common, for a terminal."""
    lines = [f"{mark}: {_title(record)}" for mark, record in (("A", first), ("B", second))]
    lines += [f"Attention: {difference}." for difference in differences(first, second)]
    common = [(w.name, m) for w in first.workloads for m in first.methods if _starts(first, w.name, m)]
    rows = [row for w, m in common for row in _row(w, m, _starts(first, w, m), _starts(second, w, m))]
    if not rows:
        return "\n".join([*lines, "They have no workload and method in common."])
    note = (
        f"Medians of the times to readiness. B / A: with its {_CONFIDENCE:.0%} bootstrap interval. Where\n"
        "that includes 1, the samples do not show which is faster; that they are equal is not shown either.\n"
        "* others used the machine in a typical start of A or B"
    )
    return "\n".join([*lines, "", *rows, "", note])


def differences(first: Record, second: Record) -> Iterator[str]:
    """What makes two runs hard to compare."""
    if first.machine != second.machine:
        changed = sorted(
            k for k in {*first.machine, *second.machine} if first.machine.get(k) != second.machine.get(k)
        )
        yield f"the machines differ: {', '.join(changed)}"
    if (first.distance, first.caches) != (second.distance, second.caches):
        yield f"{first.distance}, {first.caches} is compared with {second.distance}, {second.caches}"
    sizes = {facts.name: facts.image_bytes for facts in first.workloads}
    for facts in second.workloads:
        if sizes.get(facts.name, facts.image_bytes) != facts.image_bytes:
            yield f"the image of {facts.name} is another one"


def _title(record: Record) -> str:
    return f"{record.commit or 'no commit'}, {record.date}, {record.distance}, caches {record.caches}"


def _starts(record: Record, workload: str, method: str) -> Sequence[Start]:
    return [start for one in record.of(workload) if one.method == method for start in one.starts]


def _row(workload: str, method: str, first: Sequence[Start], second: Sequence[Start]) -> Iterator[str]:
    if not second:
        return
    values = [[start.ready_s for start in starts] for starts in (first, second)]
    change = bootstrap_ratio(*values, confidence=_CONFIDENCE)
    times = "  ".join(f"{number(Spread.of(v).median):>7} s (n={len(v)})" for v in values)
    between = f" [{change.interval.low:.2f}, {change.interval.high:.2f}]" if change.interval else ""
    mark = "*" if is_disturbed(first) or is_disturbed(second) else " "
    moved = [Spread.of([start.down for start in starts]).median / 1e6 for starts in (first, second)]
    yield (
        f"{workload:<10} {method:<22} {times}  B / A {change.ratio:.2f}{between}{mark} {change.verdict}; "
        f"{moved[0]:.1f} -> {moved[1]:.1f} MB"
    )
