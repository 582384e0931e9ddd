"""The results as values and as JSON: every sample, with the machine, the commit and the circumstances."""

import datetime as dt
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from bench.cold.tap import Exchange
from bench.cold.watching import Use
from bench.report import commit, machine

KIND: Final = "lazyfs cold starts"
VERSION: Final = 1


class BadRecord(Exception):
    """A file that holds no results; the message says why."""


@dataclass(frozen=True, slots=True)
class Start:
    """One start of one container. Times are seconds since it was asked for.

    Attributes:
        pulled_s: until the method said that the container can be started.
        ready_s: until it was ready.
        completed_s: until it had ended; None for one that does not end.
        down: bytes that the registry sent until then, with the heads of its answers.
        requests: that the registry got until then.
        processes: what daemons and commands used, by the name of the program; the container does not count.
        others_share: what processes that have nothing to do with it used of the machine, 0 to 1.
        exchanges: the requests, with times since the beginning.
    """

    pulled_s: float
    ready_s: float
    completed_s: float | None
    down: int
    requests: int
    processes: Sequence[Use]
    others_share: float
    exchanges: Sequence[Exchange] = field(repr=False)

    @property
    def cpu_s(self) -> float:
        """CPU seconds of all of them."""
        return sum(use.cpu_s for use in self.processes)

    @property
    def peak_bytes(self) -> int:
        """The peaks of their memory, added."""
        return sum(use.peak_bytes for use in self.processes)

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Self:
        """The start that `asdict` told."""
        return cls(
            **{
                **told,
                "processes": [Use(*use) for use in told["processes"]],
                "exchanges": [Exchange(*exchange) for exchange in told["exchanges"]],
            }
        )


@dataclass(slots=True)
class Series:
    """The starts of one workload by one method.

    Attributes:
        workload: its name.
        method: its name.
        starts: in the order they were taken.
        failure: why there are no more; "" if nothing failed.
    """

    workload: str
    method: str
    starts: list[Start] = field(default_factory=list)
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a workload.

    Attributes:
        name: its name.
        image: what it starts.
        command: what runs in it; empty: the image's own.
        image_bytes: of all layers, compressed.
        touched_bytes: of the pages that a start touches, uncompressed; 0 if nobody looked.
    """

    name: str
    image: str
    command: Sequence[str]
    image_bytes: int
    touched_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Record:
    """Everything of one run.

    Attributes:
        distance: "100mbit-20ms".
        caches: "cold" or "warm".
        date: when it began, ISO 8601.
        commit: what was measured; "+" at its end: with changes.
        machine: what it ran on.
        command: how it was asked for.
        methods: titles by name, in the order of tables.
        workloads: what was started.
        series: the starts.
        note: what the one who measured wants to be said with the results.
    """

    distance: str
    caches: str
    date: str
    commit: str
    machine: Mapping[str, Any]
    command: Sequence[str]
    methods: Mapping[str, str]
    workloads: Sequence[Facts]
    series: Sequence[Series]
    note: str = ""

    def of(self, workload: str) -> list[Series]:
        """The series of a workload, in the order of the methods."""
        found = {series.method: series for series in self.series if series.workload == workload}
        return [found[method] for method in self.methods if method in found]

    def to_json(self) -> str:
        """As a document that `from_json` reads."""
        return json.dumps({"kind": KIND, "version": VERSION, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The record in a document.

        Raises:
            BadRecord: it holds none, or of another version.
        """
        try:
            told = json.loads(text)
            kind, version = told.pop("kind"), told.pop("version")
            if (kind, version) != (KIND, VERSION):
                raise BadRecord(f"version {version} of {kind!r}, not {VERSION} of {KIND!r}")
            series = [
                Series(s["workload"], s["method"], [Start.of(start) for start in s["starts"]], s["failure"])
                for s in told.pop("series")
            ]
            return cls(series=series, workloads=[Facts(**facts) for facts in told.pop("workloads")], **told)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadRecord(f"not the results of `python -m bench cold --json`: {error!r}") from error


def new_record(
    *,
    distance: str,
    caches: str,
    command: Sequence[str],
    methods: Mapping[str, str],
    workloads: Iterable[Facts],
    note: str,
) -> Record:
    """A record of this machine and commit, without any starts."""
    now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    facts = list(workloads)
    series = [Series(f.name, method) for f in facts for method in methods]
    return Record(distance, caches, now, commit(), machine(), command, methods, facts, series, note)


def load(path: Path) -> Record:
    """The record in a file.

    Raises:
        BadRecord: it cannot be read, or holds none.
    """
    try:
        return Record.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise BadRecord(f"{path}: {error}") from error
    except BadRecord as error:
        raise BadRecord(f"{path}: {error}") from error
