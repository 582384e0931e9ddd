"""cache images, ls, usage, verify: what is kept, and whether it is right."""

from datetime import UTC, datetime
from typing import Any

import click
from msgspec.structs import asdict

from lazyfs.assembly import open_cache
from lazyfs.cache.catalogue import Listed
from lazyfs.cache.checking import EntryCheck
from lazyfs.cache.inventory import EntryInfo
from lazyfs.cli.cache_room import gc, pin, rm, unpin
from lazyfs.cli.options import CACHE, configured_by
from lazyfs.cli.output import human, print_json, write_table
from lazyfs.config import Config
from lazyfs.exit_codes import BAD_DATA


@click.group()
def cache() -> None:
    """Look at what is kept on this machine, check it, and say what shall stay."""


@cache.command()
@configured_by(CACHE)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def images(config: Config, as_json: bool) -> None:
    """List the images that are here, and how much of each; the one last used first.

    Layers that images share are counted for each of them.
    """
    here = open_cache(config)
    entries = {(entry.layer_digest, entry.toc_digest): entry for entry in here.ls()}
    facts = [_image_facts(listed, entries) for listed in here.catalogue.images()]
    if as_json:
        print_json(facts)
        return
    rows = [["IMAGE", "DIGEST", "LAYERS", "HERE", "ON DISK", "LAST USED (UTC)", ""]]
    rows += [
        [
            fact["name"],
            _short(fact["manifest"]),
            str(len(fact["layers"])),
            _percent(fact["present"], fact["leaves"]),
            human(fact["allocated_bytes"]),
            _when(fact["last_used"]),
            _notes(fact),
        ]
        for fact in facts
    ]
    write_table(rows, "llrrrll")


@cache.command()
@configured_by(CACHE)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def ls(config: Config, as_json: bool) -> None:
    """List the layers that are here, and how much of each."""
    entries = [asdict(entry) for entry in open_cache(config).ls()]
    if as_json:
        print_json(entries)
        return
    rows = [["LAYER", "UNCOMPRESSED", "HERE", "ON DISK", "LAST USED (UTC)", ""]]
    rows += [
        [
            _short(entry["layer_digest"]),
            human(entry["size"]),
            _percent(entry["present"], entry["leaves"]),
            human(entry["allocated_bytes"]),
            _when(entry["last_used"]),
            _notes(entry),
        ]
        for entry in entries
    ]
    write_table(rows, "lrrrll")


@cache.command()
@configured_by(CACHE)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def usage(config: Config, as_json: bool) -> None:
    """How much disk the cache takes, by kind, and how much all but containers may take."""
    taken = open_cache(config).usage()
    quota = config.cache_quota_mib << 20
    if as_json:
        print_json({**asdict(taken), "total": taken.total, "quota": quota})
        return
    rows = [[kind, human(size)] for kind, size in taken.kinds.items()]
    rows.append(["in all", human(taken.total)])
    write_table([*rows, ["quota", human(quota) if quota else "none"]], "lr")


@cache.command()
@configured_by(CACHE)
@click.option(
    "--repair", is_flag=True, help="Forget what is wrong or cannot be checked; it is fetched again."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(config: Config, repair: bool, as_json: bool) -> int:
    """Hash everything that is here again. Exit code 65 if something was wrong.

    RIGHT, WRONG and UNKNOWN count spans. What is here only in part cannot always be checked.
    """
    checks = list(open_cache(config).verify(repair=repair))
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        rows = [["LAYER", "RIGHT", "WRONG", "UNKNOWN", ""]]
        write_table(rows + [_check_row(check) for check in checks], "lrrrl")
    return BAD_DATA if any(check.wrong for check in checks) else 0


for _command in (pin, unpin, gc, rm):
    cache.add_command(_command)


def _image_facts(listed: Listed, entries: dict[tuple[str, str], EntryInfo]) -> dict[str, Any]:
    layers = [entries[layer] for layer in dict.fromkeys(listed.image.layers) if layer in entries]
    return {
        **asdict(listed.image),
        "last_used": listed.last_used,
        "leaves": sum(entry.leaves for entry in layers),
        "present": sum(entry.present for entry in layers),
        "allocated_bytes": sum(entry.allocated_bytes for entry in layers),
        "in_use": bool(layers) and all(entry.in_use for entry in layers),
    }


def _check_row(check: EntryCheck) -> list[str]:
    note = "its table of contents is not here" if check.without_toc else "repaired" if check.repaired else ""
    numbers = (check.right, len(check.wrong), len(check.unverifiable))
    return [_short(check.layer_digest), *map(str, numbers), note]


def _short(digest: str) -> str:
    """As much of a digest as tells it from others; --json has all of it."""
    return digest[: len("sha256:") + 12]


def _percent(present: int, leaves: int) -> str:
    return f"{100 * present // max(leaves, 1)} %"


def _when(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}"


def _notes(facts: dict[str, Any]) -> str:
    return ", ".join(note for note in ("pinned", "in_use") if facts[note]).replace("_", " ")
