"""commit: an image of what a container changed."""

import logging
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import click
import trio
from msgspec.structs import replace

from lazyfs.assembly import Workshop, place_to_publish, refuse_offline, source_settings
from lazyfs.cli.build_time import build_time
from lazyfs.cli.completing import complete_changes, complete_image
from lazyfs.cli.containers import container_places
from lazyfs.cli.images import index_image
from lazyfs.cli.options import configured
from lazyfs.cli.output import print_json, write_line
from lazyfs.cli.running import with_workshop
from lazyfs.config import Config
from lazyfs.container.changes import Changes, check_maker, load_changes
from lazyfs.container.layer_file import WrittenLayer, write_layer
from lazyfs.container.new_image import Making, NewImage, apply_edits, new_image
from lazyfs.container.places import ContainerPlaces
from lazyfs.container.upper import upper_members
from lazyfs.container.user_namespace import become_root
from lazyfs.errors import ContainerError
from lazyfs.flock import directory_owned
from lazyfs.image.resolve import ResolvedImage
from lazyfs.oci.image_name import ImageName, RegistryImage, parse_image
from lazyfs.source.local.source import FileRange, LocalBlob
from lazyfs.source.push.image import ImageToStore, open_image_store

_log = logging.getLogger(__name__)


@click.command()
@configured
@click.argument("changes", shell_complete=complete_changes)
@click.argument("target")
@click.option(
    "--image",
    shell_complete=complete_image,
    help="The image below, where CHANGES is the upper directory of an overlay of your own.",
)
@click.option(
    "--compression", type=click.Choice(["gzip", "zstd"]), default="gzip", show_default=True,
    help="Of the new layer.",
)  # fmt: skip
@click.option(
    "-c", "--change", "edits", multiple=True, metavar="INSTRUCTION",
    help="As in a Dockerfile: CMD, ENTRYPOINT, ENV, WORKDIR, USER, LABEL, EXPOSE, VOLUME, STOPSIGNAL.",
)  # fmt: skip
@click.option("-a", "--author", default="", help="Who made it.")
@click.option("-m", "--message", default="", help="A remark for its history.")
@click.option(
    "--push-index", is_flag=True, help="Publish its index as well, so that it mounts at once anywhere."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def commit(
    config: Config,
    changes: str,
    target: str,
    image: str | None,
    compression: str,
    edits: tuple[str, ...],
    author: str,
    message: str,
    push_index: bool,
    as_json: bool,
) -> None:
    """Make an image, TARGET, of the CHANGES that a container made to its image.

    CHANGES is a directory that lazyfs run --upper kept them in, the name of a container that is running, or
    the upper directory of any overlay over an image, which --image then names. TARGET is oci:DIR[:TAG] or an
    image of a registry. The new layer's index is made too, and kept in the cache.

    \b
      lazyfs run --upper ./work debian:12 sh -c 'apt-get update && apt-get install -y jq'
      lazyfs commit ./work registry.example/jq:1 -c 'CMD ["jq"]' --push-index
    """  # noqa: D301  # \b is click's mark for text that is not to be wrapped
    apply_edits({}, edits)
    named = parse_image(target)
    refuse_offline(config, named)
    if push_index:
        place_to_publish(config, named)
    making = Making(f"{build_time(os.environ):%Y-%m-%dT%H:%M:%SZ}", author, message, edits)
    rootless = os.geteuid() != 0
    found, still = _changes(changes, image, container_places(config), rootless=rootless)
    if rootless:
        become_root()  # its files belong to users of the container's namespace
    base = _base_name(found)

    async def work(workshop: Workshop) -> dict[str, Any]:
        resolved = await workshop.resolve()
        if found.digest and found.digest != resolved.descriptor.digest:
            raise ContainerError(
                f"{found.directory} has changes to {found.image} as it was then, {found.digest}, "
                "which is not there any more"
            )
        async with _written(workshop, resolved, found, still, compression, making) as (made, store):
            async with open_image_store(named, source_settings(config), base=base) as images:
                await images.store(store)
            return {
                "image": str(named),
                "digest": made.manifest_link.digest,
                "layer": made.layer_link.digest,
                "size": made.layer_link.size,
            }

    facts = with_workshop(config, str(base), work)
    if push_index:
        facts["published"] = _publish(config, named, facts["digest"])
    if as_json:
        print_json(facts)
    else:
        write_line(facts["digest"])


def _changes(
    named: str, image: str | None, places: ContainerPlaces, *, rootless: bool
) -> tuple[Changes, AbstractContextManager[None]]:
    """The changes that a name means, and a context in which a container makes no more of them."""
    directory = Path(named).absolute()
    if image is not None:
        if not directory.is_dir():
            raise ContainerError(f"{named}: no directory")
        return _Bare(directory, image, ""), nullcontext()
    place = places.find(named)
    found = _kept(directory if place is None else Path(place.facts.changes), named)
    check_maker(found, rootless=rootless)
    place = place or places.changing(found.directory)
    runtime = place.runtime() if place is not None else None
    if place is None or runtime is None:
        return found, _unused(found.directory)
    return found, runtime.paused(place.facts.identifier)


@contextmanager
def _unused(directory: Path) -> Iterator[None]:
    """No container begins to use the directory; a warning says so if one does that we know nothing of."""
    with directory_owned(directory) as owned:
        if not owned:
            _log.warning(
                "%s: a container of another cache uses it, and is not paused: what it writes meanwhile "
                "may be there in part", directory,
            )  # fmt: skip
        yield


class _Bare(Changes, frozen=True):
    """Changes in an upper directory that nothing is known of."""

    @property
    def upper(self) -> Path:
        """The directory itself."""
        return self.directory


def _kept(directory: Path, named: str) -> Changes:
    found = load_changes(directory) if directory.is_dir() else None
    if found is None:
        raise ContainerError(
            f"{named}: neither a running container nor a directory that lazyfs run --upper made"
        )
    return found


def _base_name(changes: Changes) -> ImageName:
    """The image below, by digest where it has one."""
    name = parse_image(changes.image)
    if isinstance(name, RegistryImage) and changes.digest:
        return replace(name, reference=replace(name.reference, digest=changes.digest))
    return name


@asynccontextmanager
async def _written(
    workshop: Workshop,
    resolved: ResolvedImage,
    changes: Changes,
    still: AbstractContextManager[None],
    compression: str,
    making: Making,
) -> AsyncIterator[tuple[NewImage, ImageToStore]]:
    """The new image, its layer in a file without a name, indexed."""
    with tempfile.TemporaryFile(dir=workshop.cache.root / "tmp", prefix="layer-") as file:

        def write() -> WrittenLayer:
            user_marks = None if isinstance(changes, _Bare) else changes.user_namespace
            members = upper_members(changes.upper, changes.mount_points, user_marks=user_marks)
            try:
                with still:
                    return write_layer(members, file.fileno(), compression)
            except OSError as error:
                raise ContainerError(f"{changes.upper} cannot be made a layer: {error}") from error

        written = await trio.to_thread.run_sync(write)
        made = new_image(resolved.manifest, resolved.raw_config, written, making)
        blob = LocalBlob(_Spooled(file.fileno(), written.size), written.digest, written.size)
        await workshop.indexer.ensure(made.layer_link, blob)
        layers = [(layer.descriptor, workshop.source.blob(layer.descriptor)) for layer in resolved.layers]
        yield (
            made,
            ImageToStore(
                [*layers, (made.layer_link, blob)],
                (made.config_link, made.config),
                (made.manifest_link, made.manifest),
            ),
        )


class _Spooled:
    """A LocalContent of one file."""

    def __init__(self, descriptor: int, size: int) -> None:
        self._range = FileRange(descriptor, 0, size)

    def find(self, digest: str) -> FileRange:
        """As LocalContent.find says."""
        del digest
        return self._range


def _publish(config: Config, named: ImageName, digest: str) -> dict[str, Any]:
    """Publish the index of the image that was stored."""
    config = replace(config, index="local")
    name = named
    if isinstance(named, RegistryImage):
        name = replace(named, reference=replace(named.reference, digest=digest))

    async def work(workshop: Workshop) -> dict[str, Any]:
        async with workshop.open_publisher() as publisher:
            facts = await index_image(workshop, await workshop.resolve(), publisher)
        return dict(facts["published"])

    return with_workshop(config, str(name), work)
