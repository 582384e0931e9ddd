"""A whole run: everything prepared first, then the methods in turn, again and again."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench.cold.methods.base import Method
from bench.cold.record import Facts, Record, Series, new_record
from bench.cold.run import Caches, Runner
from bench.cold.site import Distance, site
from bench.cold.store import Store
from bench.cold.workload import Workload
from bench.measure import MethodFailed
from tests.support.lab_registry import docker_registry


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be measured.

    Attributes:
        workloads: what is started.
        methods: how, by name.
        distance: of the registry.
        caches: what is there already.
        registry_down: whether nobody listens there during a start that is not the first.
        programs: where programs are looked for first.
        repeat: starts of each.
        quiet_wait_s: how long to wait at most for other load to pass, before each.
        command: how it was asked for.
        note: to stand with the results.
    """

    workloads: Sequence[Workload]
    methods: Mapping[str, Method]
    distance: Distance
    caches: Caches = Caches.COLD
    registry_down: bool = False
    programs: Path | None = None
    repeat: int = 3
    quiet_wait_s: float = 0.0
    command: Sequence[str] = ()
    note: str = ""


def measure_all(plan: Plan, store: Store, keep: Callable[[Record], None]) -> Record:
    """All starts.

    A method that fails is left out from then on, for that workload.

    Args:
        plan: what is to be measured.
        store: the images.
        keep: told after each start.

    Raises:
        MethodFailed: nothing can be measured here.
    """
    total = len(plan.workloads) * len(plan.methods)
    with _bar(total, "preparing") as bar:
        record, names = _prepare(plan, store, bar)
    with (
        _served(store) as upstream,
        site(plan.distance, upstream) as place,
        _bar(total * plan.repeat, "measuring") as bar,
    ):
        runner = Runner(
            place, store, store.home, plan.caches,
            registry_down=plan.registry_down, programs=plan.programs, quiet_wait_s=plan.quiet_wait_s,
        )  # fmt: skip
        for _, series in product(range(plan.repeat), record.series):
            bar.set_postfix_str(f"{series.workload} by {series.method}")
            if not series.failure:
                workload = next(w for w in plan.workloads if w.name == series.workload)
                _take(runner, plan.methods[series.method], workload, names[id(series)], series)
                keep(record)
            bar.update()
    return record


def _take(runner: Runner, method: Method, workload: Workload, name: str, series: Series) -> None:
    try:
        series.starts.append(runner.start(method, workload, name))
    except MethodFailed as failed:
        series.failure = str(failed)


def _prepare(plan: Plan, store: Store, bar: "tqdm[Any]") -> tuple[Record, dict[int, str]]:
    """A record without starts, and the images' names by the identity of their series."""
    published: dict[tuple[str, str], str | MethodFailed] = {}
    for workload, (name, method) in product(plan.workloads, plan.methods.items()):
        bar.set_postfix_str(f"{workload.name} for {name}")
        try:
            method.check()
            published[workload.name, name] = method.publish(store, workload)
        except MethodFailed as failed:
            published[workload.name, name] = failed
        bar.update()
    record = new_record(
        distance=plan.distance.name,
        caches=plan.caches + (", registry down" if plan.registry_down else ""),
        command=plan.command,
        methods={name: method.title for name, method in plan.methods.items()},
        workloads=[
            Facts(w.name, w.image or w.recipe, w.command, store.image_bytes(w), store.touched_bytes(w))
            for w in plan.workloads
        ],
        note=plan.note,
    )
    names: dict[int, str] = {}
    for series in record.series:
        found = published[series.workload, series.method]
        if isinstance(found, MethodFailed):
            series.failure = str(found)
        else:
            names[id(series)] = found
    return record, names


@contextmanager
def _served(store: Store) -> Iterator[str]:
    """The address of the registry that is measured with."""
    if store.registry:
        yield store.registry
        return
    store.storage.mkdir(parents=True, exist_ok=True)
    with docker_registry(store.storage, read_only=True) as address:
        yield address


def _bar(total: int, what: str) -> "tqdm[Any]":
    """On a terminal only."""
    return tqdm(total=total, desc=what, disable=None, leave=False, dynamic_ncols=True)
