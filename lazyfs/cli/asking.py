"""Asks the daemons of mounts, for commands that tell of one mount or of all."""

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final

from lazyfs.cli.containers import container_places
from lazyfs.cli.output import complain, write_line
from lazyfs.cli.service import DEFAULT_SOCKET as DAEMON_SOCKET
from lazyfs.config import Config
from lazyfs.container.places import ContainerPlace
from lazyfs.errors import MountError, NotMounted
from lazyfs.mount.mounts import resolve_mount_point
from lazyfs.mount_states import MountStates, runtime_directory

_OTHERS: Final = " by lazyfs mount or run; lazyfs stats --daemon, or explain, tells of other containers"


def ask_mounts(config: Config, directory: Path | None, question: str) -> list[dict[str, Any]]:
    """What daemons answer: that of the mount, or the container, which `directory` names; else all that live.

    A container's answer has its name as "container". Of daemons that are dead a line on stderr tells, unless
    one of them was meant.

    Raises:
        NotMounted: nothing of ours is at `directory`.
        MountError: its daemon does not answer.
    """
    states, places = MountStates(runtime_directory(os.environ)), container_places(config)
    if directory is None:
        return [
            *_ask_all(states, question),
            *chain.from_iterable(_ask_all_in(p, question) for p in places.all()),
        ]
    place = places.find(str(directory))
    answers = list(_ask_all_in(place, question)) if place and not directory.exists() else []
    return answers or [states.ask(Path(os.fsdecode(resolve_mount_point(directory))), question)]


def write_each(answers: Sequence[dict[str, Any]], write: Callable[[dict[str, Any]], None]) -> None:
    """Answers on stdout, an empty line between two; where there is none, a line on stderr says so."""
    if not answers:
        served = os.path.exists(DAEMON_SOCKET)  # noqa: PTH110  # also where it may not be looked at
        complain(f"no image is mounted{_OTHERS if served else ''}")
    for number, answer in enumerate(answers):
        if number:
            write_line("")
        write(answer)


def _ask_all(states: MountStates, question: str) -> Iterator[dict[str, Any]]:
    for facts in states.all():
        try:
            yield states.ask(Path(facts.mount_point), question)
        except (MountError, NotMounted) as error:  # ended since we looked, or was killed
            complain(str(error))


def _ask_all_in(place: ContainerPlace, question: str) -> Iterator[dict[str, Any]]:
    """The answer of the daemon of a container's root; none if that has gone."""
    for answer in _ask_all(MountStates(place.path), question):
        yield {"container": place.path.name, **answer}
