"""cache ls, usage, verify."""

from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import click

from indexer.errors import IndexerError
from indexer.toc import SpanTable
from indexer.toc_codec import decode_head
from lazyfs.assembly import open_cache
from lazyfs.cache.cache import Cache
from lazyfs.cache.checking import EntryCheck
from lazyfs.cli.options import configured
from lazyfs.cli.output import human, print_json, write_table
from lazyfs.config import Config
from lazyfs.exit_codes import BAD_DATA


@click.group()
def cache() -> None:
    """Look at what is kept on this machine, and check it."""


@cache.command()
@configured
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def ls(config: Config, as_json: bool) -> None:
    """List the layers that are here, and how much of each."""
    entries = [asdict(entry) for entry in open_cache(config).ls()]
    if as_json:
        print_json(entries)
        return
    rows = [["LAYER", "UNCOMPRESSED", "HERE", "ON DISK", "LAST USED (UTC)"]]
    rows += [
        [
            _short(entry["layer_digest"]),
            human(entry["size"]),
            f"{100 * entry['present'] // max(entry['leaves'], 1)} %",
            human(entry["allocated_bytes"]),
            f"{datetime.fromtimestamp(entry['last_used'], UTC):%Y-%m-%d %H:%M}",
        ]
        for entry in entries
    ]
    write_table(rows, "lrrrl")


@cache.command()
@configured
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def usage(config: Config, as_json: bool) -> None:
    """How much disk the cache takes, by kind."""
    facts: dict[str, Any] = asdict(open_cache(config).usage())
    if as_json:
        print_json(facts)
        return
    rows = [[kind, human(size)] for kind, size in facts["kinds"].items()]
    write_table([*rows, ["in all", human(sum(facts["kinds"].values()))]], "lr")


@cache.command()
@configured
@click.option(
    "--repair", is_flag=True, help="Forget what is wrong or cannot be checked; it is fetched again."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(config: Config, repair: bool, as_json: bool) -> int:
    """Hash everything that is here again. Exit code 65 if something was wrong.

    RIGHT, WRONG and UNKNOWN count spans. What is here only in part cannot always be checked.
    """
    here = open_cache(config)
    checks = list(here.verify(_span_loader(here), repair=repair))
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        rows = [["LAYER", "RIGHT", "WRONG", "UNKNOWN", ""]]
        write_table(rows + [_check_row(check) for check in checks], "lrrrl")
    return BAD_DATA if any(check.wrong for check in checks) else 0


def _check_row(check: EntryCheck) -> list[str]:
    note = "its table of contents is not here" if check.without_toc else "repaired" if check.repaired else ""
    numbers = (check.right, len(check.wrong), len(check.unverifiable))
    return [_short(check.layer_digest), *map(str, numbers), note]


def _short(digest: str) -> str:
    """As much of a digest as tells it from others; --json has all of it."""
    return digest[: len("sha256:") + 12]


def _span_loader(here: Cache) -> Callable[[str, str], SpanTable | None]:
    def load(layer_digest: str, toc_digest: str) -> SpanTable | None:
        for name in here.tocs.names(layer_digest):
            data = here.tocs.load(layer_digest, name, toc_digest)
            if data is not None:
                try:
                    return decode_head(data, toc_digest).spans()
                except IndexerError:
                    return None
        return None

    return load
