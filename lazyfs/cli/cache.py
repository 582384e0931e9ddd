"""cache ls, usage, verify."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import click

from indexer.errors import IndexerError
from indexer.toc import SpanTable
from indexer.toc_codec import decode_head
from lazyfs.assembly import open_cache
from lazyfs.cache.cache import Cache
from lazyfs.cli.options import configured
from lazyfs.cli.output import print_json
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
    for entry in entries:
        click.echo("  ".join(f"{name}={value}" for name, value in entry.items()))


@cache.command()
@configured
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def usage(config: Config, as_json: bool) -> None:
    """How much disk the cache takes, by kind."""
    facts: dict[str, Any] = asdict(open_cache(config).usage())
    if as_json:
        print_json(facts)
        return
    for name, value in facts.items():
        click.echo(f"{name:20}{value}")


@cache.command()
@configured
@click.option(
    "--repair", is_flag=True, help="Forget what is wrong or cannot be checked; it is fetched again."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(config: Config, repair: bool, as_json: bool) -> int:
    """Hash everything that is here again. Exit code 65 if something was wrong."""
    here = open_cache(config)
    checks = list(here.verify(_span_loader(here), repair=repair))
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        for check in checks:
            click.echo("  ".join(f"{name}={value}" for name, value in asdict(check).items()))
    return BAD_DATA if any(check.wrong for check in checks) else 0


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
