"""Results as JSON with every sample, and as a table of medians, spreads and ratios."""

import datetime as dt
import os
import platform
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from bench.measure import QUIET_SHARE, Measured, Sample
from bench.spread import Spread

VERSION: Final = 1
"""Of the JSON."""


def as_json(results: Sequence[Measured], command: Sequence[str]) -> dict[str, Any]:
    """Everything: machine, commit, date, and each row with all samples."""
    return {
        "version": VERSION,
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "command": list(command),
        "commit": commit(),
        "machine": machine(),
        "rows": [_row(measured) for measured in results],
    }


def _row(measured: Measured) -> dict[str, Any]:
    row = measured.row
    return {
        "name": row.name,
        "unit": row.unit,
        "note": row.note,
        "baseline": row.cases[0].method,
        "methods": {
            method: {
                "samples": [sample.value for sample in samples],
                "wall_s": [round(sample.wall_s, 4) for sample in samples],
                "cpu_s": [round(sample.cpu_s, 2) for sample in samples],
                "others_share": [round(sample.others_share, 3) for sample in samples],
            }
            for method, samples in measured.samples.items()
        },
        "failures": dict(measured.failures),
    }


def machine() -> dict[str, Any]:
    """What it ran on."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def commit() -> str:
    """The commit that was measured, with "+" if files differ from it; "" outside a repository."""
    try:
        name = _git("rev-parse", "--short", "HEAD")
        return name + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(*arguments: str) -> str:
    folder = Path(__file__).parent
    return subprocess.run(
        ["git", *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def table(results: Sequence[Measured]) -> str:
    """The results for a person: medians, the lowest and the highest sample, multiples of the first method."""
    return "\n".join(line for measured in results for line in (*_table_rows(measured), ""))


def _table_rows(measured: Measured) -> Iterator[str]:
    row = measured.row
    yield f"{row.name} [{row.unit}]{'  ' + row.note if row.note else ''}"
    spreads = {m: Spread.of([s.value for s in samples]) for m, samples in measured.samples.items()}
    baseline = spreads.get(row.cases[0].method)
    for case in row.cases:
        if case.method in measured.failures:
            yield f"  {case.method:<22} not measured: {measured.failures[case.method]}"
        elif case.method in spreads:
            spread = spreads[case.method]
            ratio = spread.ratio_to(baseline) if baseline else None
            mark = "*" if not row.exact and is_disturbed(measured.samples[case.method]) else " "
            between = "" if row.exact else f"{number(spread.low):>9} - {number(spread.high)}"
            times = f"{ratio:7.2f} x" if ratio is not None else ""
            yield f"  {case.method:<22}{number(spread.median):>10}{mark} {between:<21} {times}".rstrip()


def footnote(results: Sequence[Measured]) -> str:
    """What the table's marks mean."""
    samples = [s for measured in results for method in measured.samples.values() for s in method]
    worst = max((sample.others_share for sample in samples), default=0)
    return (
        f"median, lowest - highest, multiple of the first method; * while others used more than "
        f"{QUIET_SHARE:.0%} of the machine (in the worst sample {worst:.0%})"
    )


def is_disturbed(samples: Sequence[Sample]) -> bool:
    """Whether others used the machine in a typical sample."""
    return Spread.of([sample.others_share for sample in samples]).median > QUIET_SHARE


def number(value: float) -> str:
    """Three digits that count."""
    if value == 0 or abs(value) >= 1000:
        return f"{value:.0f}"
    digits = 3 if abs(value) < 1 else 2 if abs(value) < 10 else 1
    if abs(value) < 0.1:
        digits = 4
    return f"{value:.{digits}f}"
