"""run: a container of an image."""

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final

import click

from lazyfs.cli.completing import complete_image
from lazyfs.cli.containers import container_places
from lazyfs.cli.image_server import ForkedServer, ServerFailed
from lazyfs.cli.options import PATH, configured
from lazyfs.cli.output import complain
from lazyfs.cli.process_options import process_options, wishes_of
from lazyfs.config import Config
from lazyfs.container.process import signal_number
from lazyfs.container.run import RunOrder, enter_namespaces, run_container, undertaken
from lazyfs.container.runtime import find_runtime

BEGUN: Final = f"{__name__}.begun"
"""Key of the context's `meta`: what to call once the container has been started."""

_LOG: Final = "daemon.log"
_MOST_LINES: Final = 10
_MOST_BYTES: Final = 1 << 16


@click.command(context_settings={"allow_interspersed_args": False})
@configured
@click.argument("image", shell_complete=complete_image)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("-i", "--interactive", is_flag=True, help="Give it our standard input.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal.")
@process_options
@click.option("--name", default="", help="Its name here; made up if not given.")
@click.option(
    "--upper", type=PATH, metavar="DIR", help="Keep its changes in DIR, or go on with those that are there."
)
@click.option("--rm", is_flag=True, help="Happens always: only --upper keeps anything.")
@click.option(
    "--runtime",
    default="",
    metavar="NAME",
    help="runc, crun, or the path of one; the first of them by default.",
)
@click.option("--stop-signal", default="", help="What it gets when we get SIGTERM; else as the image says.")
@click.option(
    "--driver",
    type=click.Choice(["auto", "erofs", "fuse"]),
    default="auto",
    show_default=True,
    help="As for mount.",
)
@click.option(
    "--record",
    is_flag=True,
    help="Read as little ahead as possible, so that the trace tells what was wanted.",
)
def run(
    config: Config,
    image: str,
    command: tuple[str, ...],
    interactive: bool,
    tty: bool,
    name: str,
    upper: Path | None,
    rm: bool,
    runtime: str,
    stop_signal: str,
    driver: str,
    record: bool,
    **wanted: Any,
) -> int:
    """Run COMMAND, or what IMAGE says, in a container over the lazily mounted IMAGE; end with its exit code.

    Words after IMAGE belong to the container. What it changes goes with it, unless --upper keeps it, which
    `lazyfs commit` makes an image of.

    \b
      lazyfs run python:3.12-slim python3 -c 'print(6 * 7)'
      lazyfs run -it -v ./src:/src -w /src node:22 bash
    """  # noqa: D301  # \b is click's mark for text that is not to be wrapped
    del rm
    if tty and interactive and not sys.stdin.isatty():
        raise click.UsageError("-t with -i takes a terminal: standard input is none")
    if stop_signal:
        signal_number(stop_signal)
    wishes = wishes_of(command=command, terminal=tty, **wanted)
    program = find_runtime(runtime, os.environ)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    order = RunOrder(
        wishes, program, upper.absolute() if upper else None, interactive, enter_namespaces(), stop_signal
    )
    places = container_places(config)
    places.clear_dead()
    starts = {name: getattr(wishes, name) for name in ("command", "entrypoint", "env", "working_dir")}
    mount = {"image": image, "driver": driver, "record": record, "starts": starts}
    begun = click.get_current_context().meta.get(BEGUN, _tell_nobody)
    with places.new(name) as place, undertaken(place), _telling(place.path / _LOG) as log:
        try:
            return run_container(order, place, partial(_serve, config, mount, place.path, log), begun)
        except ServerFailed as error:
            log.told = log.size()
            complain(str(error))
            return error.code


class _Log:
    """The log of the daemon that serves a container's image; it goes with the container.

    Attributes:
        told: how many bytes of it the user has seen.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.told = 0

    def size(self) -> int:
        """In bytes; 0 where there is none."""
        with suppress(OSError):
            return self._path.stat().st_size
        return 0

    def last_lines(self) -> list[str]:
        """The last of those that the user has not seen."""
        with suppress(OSError), self._path.open("rb") as file:
            file.seek(max(self.told, self.size() - _MOST_BYTES))
            return file.read(_MOST_BYTES).decode("utf-8", "replace").splitlines()[-_MOST_LINES:]
        return []


@contextmanager
def _telling(path: Path) -> Iterator[_Log]:
    """What the daemon logs after the image is mounted, such as why a read failed, is told at the end."""
    log = _Log(path)
    try:
        yield log
    finally:
        for line in log.last_lines():
            complain(line)


def _serve(config: Config, mount: Mapping[str, Any], place: Path, log: _Log, directory: Path) -> ForkedServer:
    """Mounts the image at a directory, with the state and the log of its daemon where the container lives."""
    order = {
        **mount,
        "mount_point": str(directory),
        "runtime_dir": str(place),
        "log_file": str(place / _LOG),
    }
    server = ForkedServer({"order": order, "config": config.as_flags()})
    log.told = log.size()  # `ForkedServer` has passed these on
    return server


def _tell_nobody() -> None:
    pass


def _end(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
