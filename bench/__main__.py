"""Measures lazyfs: `python -m bench micro`. Needs root, and what `scripts/setup bench` installs."""

import argparse
import json
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from bench.cold.command import add_commands
from bench.index_rows import build_rows, size_rows
from bench.measure import Measured, MethodFailed, Row, measure
from bench.methods import Methods
from bench.million_rows import million_rows
from bench.network_rows import link_rows, range_rows, stream_rows
from bench.report import as_json, footnote, table
from bench.tree_rows import byte_rows, file_rows, memory_rows, metadata_rows
from bench.world import World

Rows = Callable[[World, Methods], Iterator[Row]]


def _of_world(rows: Callable[[World], Iterator[Row]]) -> Rows:
    return lambda world, _: rows(world)


MICRO: Final[Mapping[str, Rows]] = {
    "metadata": metadata_rows,
    "files": file_rows,
    "bytes": byte_rows,
    "memory": memory_rows,
    "stream": _of_world(stream_rows),
    "link": _of_world(link_rows),
    "ranges": _of_world(range_rows),
    "million": _of_world(million_rows),
    "build": _of_world(build_rows),
    "size": _of_world(size_rows),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and measure."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        options.run(options)
    except KeyboardInterrupt:
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    micro = commands.add_parser("micro", help="the parts, one by one")
    micro.add_argument("--only", metavar="GROUPS", help=f"with commas, of {', '.join(MICRO)}; default: all")
    micro.add_argument("--repeat", type=int, default=3, metavar="N", help="samples of each (default: 3)")
    micro.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")
    micro.add_argument(
        "--quiet-wait", type=float, default=0, metavar="SECONDS",
        help="before each sample, wait so long at most for other load to pass",
    )  # fmt: skip
    micro.set_defaults(run=_micro)
    add_commands(commands)
    return parser


def _micro(options: argparse.Namespace) -> None:
    groups = options.only.split(",") if options.only else list(MICRO)
    if unknown := set(groups) - set(MICRO):
        sys.exit(f"bench: no group {', '.join(sorted(unknown))}; there are {', '.join(MICRO)}")
    progress = _show if sys.stderr.isatty() else _be_silent
    results: list[Measured] = []
    take = partial(measure, repeat=options.repeat, quiet_wait_s=options.quiet_wait, progress=progress)
    with World(progress) as world:
        methods = Methods(world)
        for group in groups:
            try:
                for row in MICRO[group](world, methods):
                    results.append(take(row))
                    progress("")
                    print(table(results[-1:]), flush=True)
            except MethodFailed as failed:
                print(f"{group}: not measured: {failed}", flush=True)
            if options.json:
                options.json.write_text(json.dumps(as_json(results, sys.argv), indent=1) + "\n")
    print(footnote(results))


def _show(what: str) -> None:
    print(f"\r\033[K{what}", end="", file=sys.stderr, flush=True)


def _be_silent(_: str) -> None:
    """Where nobody looks."""


if __name__ == "__main__":
    main()
