"""`python -m bench cold` and `python -m bench compare`."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.cold.catalog import UnknownName, chosen, methods
from bench.cold.compare import render_comparison
from bench.cold.html import page
from bench.cold.record import BadRecord, Record, load
from bench.cold.run import Caches
from bench.cold.session import Plan, measure_all
from bench.cold.site import BadDistance, Distance
from bench.cold.store import Store, store
from bench.cold.table import render
from bench.cold.workload import BUILT_IN, BadWorkload, Workload
from bench.cold.workload import load as load_workloads
from bench.measure import MethodFailed
from bench.world import HOME
from tests.support.lab import default_lab

_DEFAULT = "full-containerd,lazyfs-mount"


def add_commands(commands: Any) -> None:
    """Add `cold` and `compare` to the commands of an ArgumentParser."""
    cold = commands.add_parser(
        "cold", help="how long containers take to start",
        epilog="docs/cold-starts.md tells more, and how to measure images and methods of your own.",
    )  # fmt: skip
    cold.add_argument("--list", action="store_true", help="show workloads and methods, and which work here")
    cold.add_argument("--only", metavar="WORKLOADS", help="by name, with commas (default: all of the file)")
    cold.add_argument(
        "--workloads", type=Path, default=BUILT_IN, metavar="FILE", help="a TOML file of your own workloads"
    )
    cold.add_argument(
        "--methods", default=_DEFAULT, metavar="METHODS", help=f"by name, with commas (default: {_DEFAULT})"
    )
    cold.add_argument(
        "--world", default="100mbit-20ms", metavar="DISTANCE",
        help="of the registry: 100mbit-20ms (each way; default), 1gbit-1ms, loopback, or the like",
    )  # fmt: skip
    cold.add_argument(
        "--caches", choices=[*Caches], default=Caches.COLD, type=Caches,
        help="warm: the image was run before; hot: and the page cache is kept",
    )  # fmt: skip
    cold.add_argument(
        "--registry-down", action="store_true", help="with warm or hot caches: nobody listens there any more"
    )
    cold.add_argument(
        "--registry", metavar="HOST[:PORT]", help="take images from this registry, as they are there"
    )
    cold.add_argument(
        "--programs",
        type=Path,
        metavar="FOLDER",
        help="where containerd, docker and the like are looked for first",
    )
    cold.add_argument("--repeat", type=int, default=3, metavar="N", help="starts of each (default: 3)")
    cold.add_argument(
        "--quiet-wait", type=float, default=0, metavar="SECONDS", help="wait so long for other load to pass"
    )
    cold.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")
    cold.add_argument("--html", type=Path, metavar="FILE", help="write a report there")
    cold.add_argument("--plots", type=Path, metavar="FOLDER", help="write the report's pictures there")
    cold.add_argument("--note", default="", help="a sentence that stands with the results")
    cold.set_defaults(run=_cold)
    report = commands.add_parser("report", help="show results again")
    report.add_argument("record", type=Path, metavar="FILE.json", nargs="+", help="results of `cold --json`")
    report.add_argument("--html", type=Path, metavar="FILE", help="write a report there")
    report.add_argument("--plots", type=Path, metavar="FOLDER", help="write the report's pictures there")
    report.set_defaults(run=_report)
    compare = commands.add_parser("compare", help="two results of `cold --json`")
    compare.add_argument("first", type=Path, metavar="A.json")
    compare.add_argument("second", type=Path, metavar="B.json")
    compare.set_defaults(run=_compare)


def _cold(options: argparse.Namespace) -> None:
    programs = options.programs and options.programs.absolute()
    source = store(HOME.resolve(), default_lab(), options.registry or "")
    if options.registry_down and options.caches is Caches.COLD:
        sys.exit("bench: --registry-down takes --caches warm or hot")
    try:
        workloads = _workloads(options.workloads, options.only)
        if options.list:
            print(_listing(workloads, source, programs))
            return
        plan = Plan(
            workloads=workloads,
            methods=chosen(options.methods.split(","), source, programs),
            distance=Distance.of(options.world),
            caches=options.caches,
            registry_down=options.registry_down,
            programs=programs,
            repeat=options.repeat,
            quiet_wait_s=options.quiet_wait,
            command=sys.argv,
            note=options.note,
        )
        record = measure_all(plan, source, _keeper(options.json))
    except (BadWorkload, UnknownName, BadDistance, MethodFailed) as error:
        sys.exit(f"bench: {error}")
    print(render(record))
    _write([record], options.html, options.plots)


def _keeper(path: Path | None) -> Callable[[Record], None]:
    """Keeps the results so far in a file."""
    return lambda record: None if path is None else _replace(path, record.to_json())


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.rename(path)


def _workloads(path: Path, only: str | None) -> Sequence[Workload]:
    found: Mapping[str, Workload] = {workload.name: workload for workload in load_workloads(path)}
    names = only.split(",") if only else list(found)
    if unknown := [name for name in names if name not in found]:
        raise UnknownName(f"no workload {', '.join(unknown)} in {path}; there are {', '.join(found)}")
    return [found[name] for name in names]


def _listing(workloads: Sequence[Workload], source: Store, programs: Path | None) -> str:
    lines = ["Workloads:"]
    lines += [
        f"  {w.name:<24} {w.image or 'built here'}: {' '.join(w.command) or 'its own command'}"
        for w in workloads
    ]
    lines.append("Methods:")
    for name, method in methods(source, programs).items():
        try:
            method.check()
            lines.append(f"  {name:<24} {method.title}")
        except MethodFailed as failed:
            lines.append(f"  {name:<24} not here: {failed}")
    return "\n".join(lines)


def _report(options: argparse.Namespace) -> None:
    try:
        records = [load(path) for path in options.record]
    except BadRecord as error:
        sys.exit(f"bench: {error}")
    print("\n\n".join(map(render, records)))
    _write(records, options.html, options.plots)


def _compare(options: argparse.Namespace) -> None:
    try:
        print(render_comparison(load(options.first), load(options.second)))
    except BadRecord as error:
        sys.exit(f"bench: {error}")


def _write(records: Sequence[Record], html: Path | None, folder: Path | None) -> None:
    if html is None and folder is None:
        return
    from bench.cold.plots import pictures  # noqa: PLC0415  # matplotlib takes a second

    drawn = [pictures(record) for record in records]
    if html is not None:
        html.write_text(page(records, drawn))
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        for record, pictures_ in zip(records, drawn, strict=True):
            for picture in pictures_:
                (folder / f"{record.distance}-{record.caches}-{picture.name}.png").write_bytes(picture.png)
