"""stats: what mounts have fetched."""

import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import click

from lazyfs.cli.options import PATH, configured
from lazyfs.cli.output import complain, print_json, write_line
from lazyfs.config import Config
from lazyfs.container.places import ContainerPlace, ContainerPlaces
from lazyfs.errors import MountError, NotMounted
from lazyfs.mount.mounts import resolve_mount_point
from lazyfs.mount_states import MountStates, runtime_directory


@click.command()
@configured
@click.argument("directory", type=PATH, required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def stats(config: Config, directory: Path | None, as_json: bool) -> None:
    """What the mount at DIRECTORY has fetched, hit and waited for; without DIRECTORY, of all mounts.

    DIRECTORY may be the name of a container that `lazyfs run` runs.
    """
    states = MountStates(runtime_directory(os.environ))
    places = ContainerPlaces(config.cache_dir.resolve() / "containers")
    if directory is None:
        answers = [*_ask_all(states), *chain.from_iterable(map(_ask_container, places.all()))]
    else:
        place = places.find(str(directory))
        answers = list(_ask_container(place)) if place and not directory.exists() else []
        answers = answers or [states.ask(Path(os.fsdecode(resolve_mount_point(directory))), "stats")]
    if as_json:
        print_json(answers[0] if directory is not None else answers)
        return
    for answer in answers:
        _print_stats(answer)


def _ask_all(states: MountStates) -> Iterator[dict[str, Any]]:
    """The answers of all daemons that live; of the dead, a line each."""
    for facts in states.all():
        try:
            yield states.ask(Path(facts.mount_point), "stats")
        except (MountError, NotMounted) as error:  # ended since we looked, or was killed
            complain(str(error))


def _ask_container(place: ContainerPlace) -> Iterator[dict[str, Any]]:
    """The answer of the daemon of a container's root; none if that has gone."""
    for answer in _ask_all(MountStates(place.path)):
        yield {"container": place.path.name, **answer}


def _print_stats(answer: dict[str, Any]) -> None:
    reads, source = answer["reads"], answer["source"]
    image_bytes = max(int(answer["image_bytes"]), 1)
    container = [("container", answer["container"])] if "container" in answer else []
    for name, value in (
        *container,
        ("mounted at", answer["mount_point"]),
        ("image", f"{answer['image']} {answer['digest']}"),
        ("driver", f"{answer['driver']}, daemon {answer['pid']}"),
        ("fetched", f"{answer['bytes']} bytes in {answer['requests']} requests"),
        ("of the image", f"{100 * source['data_bytes'] / image_bytes:.1f} % of {image_bytes} bytes"),
        ("read by", ", ".join(f"{count} {kind}" for kind, count in answer["indexes"].items()) + " indexes"),
        ("reads", f"{reads['hits']} from the cache, {reads['misses']} waited for the source"),
        ("failed fetches", reads["failures"]),
        ("log", answer.get("log") or "on standard error"),
    ):
        write_line(f"{name:16}{value}")
