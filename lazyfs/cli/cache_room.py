"""cache pin, unpin, gc, rm: what stays, and what goes."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import click
import trio
from msgspec.structs import asdict

from lazyfs.assembly import Workshop, open_cache, opened
from lazyfs.cache.cache import Cache
from lazyfs.cache.catalogue import Listed
from lazyfs.cache.collecting import GRACE_S
from lazyfs.cli.completing import complete_image
from lazyfs.cli.options import CACHE, configured, configured_by
from lazyfs.cli.output import human, print_json, write_line, write_table
from lazyfs.cli.progress import PullBar
from lazyfs.cli.running import with_workshop
from lazyfs.config import Config
from lazyfs.errors import BadReference, CacheError, NotFound
from lazyfs.image.indexes.compiling import kept_image
from lazyfs.image.whole import fetch_whole
from lazyfs.oci.image_name import anchored, parse_image

_LEAST_DIGITS: Final = 12


@click.command()
@configured
@click.argument("image", shell_complete=complete_image)
@click.option("--fetch", is_flag=True, help="Fetch all of its content now.")
def pin(config: Config, image: str, fetch: bool) -> None:
    """Keep IMAGE: none of its content that is here, or comes later, is evicted.

    What counts is the image that this name stands for now. Undo with: lazyfs cache unpin IMAGE
    """

    async def work(workshop: Workshop) -> None:
        async with opened(workshop) as here:
            kept = kept_image(here.resolved, [index.head.digest for index in here.indexed])
            await trio.to_thread.run_sync(workshop.cache.catalogue.pin, kept)
            if fetch:
                with PullBar("fetching") as bar:
                    await fetch_whole(here, bar)

    with_workshop(config, image, work)


@click.command()
@configured_by(CACHE)
@click.argument("image", shell_complete=complete_image)
def unpin(config: Config, image: str) -> None:
    """Let the content of IMAGE, a name or a digest, be evicted again."""
    catalogue = open_cache(config).catalogue
    catalogue.unpin([listed for listed in _named(image, catalogue.images()) if listed.image.pinned])


@click.command()
@configured_by(CACHE)
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--now", is_flag=True, help="Also what is younger than an hour.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def gc(config: Config, dry_run: bool, now: bool, as_json: bool) -> None:
    """Drop what no image that is here refers to, and come down to the quota.

    What is younger than an hour may belong to an image that is just being opened, and stays. Images stay
    known until `cache rm`, or until there is no room for them.
    """
    keeper = open_cache(config).housekeeper
    garbage = keeper.garbage(0 if now else GRACE_S)
    freed = 0 if dry_run else keeper.collect(garbage)
    evicted = keeper.excess() if dry_run else keeper.make_room()
    if dry_run:
        freed = sum(item.allocated_bytes for item in garbage)
        evicted = max(0, evicted - freed)
    if as_json:
        print_json(
            {"garbage": [asdict(item) for item in garbage], "freed_bytes": freed, "evicted_bytes": evicted}
        )
        return
    rows = [[item.kind, item.name, human(item.allocated_bytes)] for item in garbage]
    write_table([["KIND", "NAME", "ON DISK"], *rows], "llr")
    would = "would be " if dry_run else ""
    write_line(f"{human(freed)} {would}dropped, {human(evicted)} {would}evicted")


@click.command()
@configured_by(CACHE)
@click.argument("targets", metavar="[IMAGE|DIGEST]...", nargs=-1, shell_complete=complete_image)
@click.option("--all", "everything", is_flag=True, help="Everything that is not pinned.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def rm(config: Config, targets: tuple[str, ...], everything: bool, as_json: bool) -> None:
    """Remove images by name or digest, or layers by digest.

    Live mounts go on: of what they use the content goes, and is fetched again when it is read. What is pinned
    must be unpinned before.
    """
    if bool(targets) == everything:
        raise click.UsageError("name what shall go, or give --all")
    here = open_cache(config)
    freed = _remove_all(here) if everything else sum(_remove(here, target) for target in targets)
    if as_json:
        print_json({"freed_bytes": freed})
    else:
        write_line(f"{human(freed)} dropped")


def _remove_all(here: Cache) -> int:
    freed = 0
    for listed in here.catalogue.images():
        if not listed.image.pinned:
            freed += here.housekeeper.remove_image(listed)
    pinned = here.catalogue.pinned_layers()
    for layer in {entry.layer_digest for entry in here.ls()} - pinned:
        freed += here.housekeeper.drop_layer(layer)
    return freed + here.housekeeper.collect(here.housekeeper.garbage(0))


def _remove(here: Cache, target: str) -> int:
    layers = {entry.layer_digest for entry in here.ls() if _is_digest(target, entry.layer_digest)}
    if layers:
        pinned = layers & here.catalogue.pinned_layers()
        if pinned:
            raise CacheError(f"{min(pinned)} belongs to a pinned image; lazyfs cache unpin it first")
        return sum(here.housekeeper.drop_layer(layer) for layer in layers)
    found = _named(target, here.catalogue.images())
    if any(listed.image.pinned for listed in found):
        raise CacheError(f"{target} is pinned; lazyfs cache unpin it first")
    return sum(here.housekeeper.remove_image(listed) for listed in found)


def _named(target: str, images: Sequence[Listed]) -> Sequence[Listed]:
    """The images of a name as the catalogue has it, or as it is written here, or of a digest.

    Raises:
        NotFound: there is none.
    """
    names = {target}
    with suppress(BadReference):
        names.add(str(anchored(parse_image(target))))
    found = [
        listed for listed in images if listed.image.name in names or _is_digest(target, listed.image.manifest)
    ]
    if not found:
        raise NotFound(f"no image {target} is in the cache; lazyfs cache images lists them")
    return found


def _is_digest(target: str, digest: str) -> bool:
    """Whether this is a digest, or the beginning of it with twelve digits at least."""
    digits = target.removeprefix("sha256:")
    return len(digits) >= _LEAST_DIGITS and digest.removeprefix("sha256:").startswith(digits)
