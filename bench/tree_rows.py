"""Rows about the tree once it is there: metadata, files, bytes, memory. All data is local."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path

from bench import workloads
from bench.measure import Case, Row
from bench.methods import Methods
from bench.world import World, drop_caches

Work = Callable[[Path], None]
Names = Callable[[], Sequence[str]]


def metadata_rows(world: World, methods: Methods) -> Iterator[Row]:
    """Names and attributes, warm and cold."""
    del world
    for name, note, work in (
        ("find", "find ROOT", workloads.find),
        ("ls -lR", "ls -lR ROOT", workloads.list_long),
        ("lstat of all", "os.walk and os.lstat in Python", workloads.lstat_all),
    ):
        yield from _warm_and_cold(methods, name, note, work)


def file_rows(world: World, methods: Methods) -> Iterator[Row]:
    """Opening and reading many small files."""
    names = cache(lambda: workloads.regular_files(world.tree.unpacked))
    for name, work in (
        ("open and close all files", workloads.open_all),
        ("read 4 KiB of all files", workloads.read_starts),
    ):
        yield from _warm_and_cold(methods, name, "", partial(_with_names, work, names))


def byte_rows(world: World, methods: Methods) -> Iterator[Row]:
    """Reading one big file."""
    del world
    for name, note, work in (
        ("read a big file", "1 MiB at a time", workloads.read_sequentially),
        ("read 4 KiB at random", "2,000 places of a big file", workloads.read_randomly),
    ):
        yield from _warm_and_cold(methods, name, note, work)


def _with_names(work: Callable[[Path, Sequence[str]], None], names: Names, root: Path) -> None:
    work(root, names())


def memory_rows(world: World, methods: Methods) -> Iterator[Row]:
    """Memory of the processes that serve the tree; after everything above, if that was measured."""

    def used(field: str, method: str) -> float:
        workloads.find(methods[method].root)
        workloads.read_sequentially(methods[method].root)
        return sum(memory_of(pid)[field] for pid in methods.pids(method)) / 1e6

    del world
    servers = [name for name in methods.names if name != methods.names[0]]
    for field in ("Rss", "Anonymous"):
        cases = [Case(name, partial(used, field, name), partial(_ready, methods, name)) for name in servers]
        yield Row(f"memory, {field}", "MB", cases, exact=True, note="/proc/PID/smaps_rollup, after use")


def memory_of(pid: int) -> dict[str, int]:
    """The fields of a process's smaps_rollup in bytes."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    fields = (line.split() for line in lines)
    return {name.rstrip(":"): int(value) << 10 for name, value, *_ in fields}


def _warm_and_cold(methods: Methods, name: str, note: str, work: Work) -> Iterator[Row]:
    def case(method: str, prepare: Callable[[], None]) -> Case:
        def run() -> None:
            work(methods[method].root)

        return Case(method, run, prepare, lambda: methods.pids(method))

    warmed: set[str] = set()

    def warm(method: str) -> None:
        if method not in warmed:
            work(methods[method].root)
            warmed.add(method)

    def cold(method: str) -> None:
        _ready(methods, method)
        drop_caches()

    yield Row(f"{name}, warm", "s", [case(m, partial(warm, m)) for m in methods.names], note=note)
    yield Row(f"{name}, cold", "s", [case(m, partial(cold, m)) for m in methods.names], note=note)


def _ready(methods: Methods, method: str) -> None:
    assert methods[method].root.is_dir()
