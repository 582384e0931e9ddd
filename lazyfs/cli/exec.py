"""exec: one more process in a container that runs."""

import os
import sys
from pathlib import Path

import click

from lazyfs.cli.completing import complete_container
from lazyfs.cli.containers import container_places, variables
from lazyfs.cli.options import CACHE, PATH, configured_by
from lazyfs.config import Config
from lazyfs.container.enter import Entering, enter
from lazyfs.errors import ContainerError


@click.command("exec", context_settings={"allow_interspersed_args": False})
@configured_by(CACHE)
@click.argument("name", shell_complete=complete_container)
@click.argument("command", nargs=-1, type=click.UNPROCESSED, required=True)
@click.option("-i", "--interactive", is_flag=True, help="Give it our standard input.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal.")
@click.option(
    "-e", "--env", "env", multiple=True, metavar="NAME[=VALUE]", help="Set a variable, or pass ours on."
)
@click.option("--env-file", "env_files", multiple=True, type=PATH, help="Variables, one a line.")
@click.option("-w", "--workdir", help="Where the command starts.")
@click.option("-u", "--user", metavar="USER[:GROUP]", help="Who runs it; else who runs the container.")
def enter_container(
    config: Config,
    name: str,
    command: tuple[str, ...],
    interactive: bool,
    tty: bool,
    env: tuple[str, ...],
    env_files: tuple[Path, ...],
    workdir: str | None,
    user: str | None,
) -> None:
    """Run COMMAND in the container NAME, which `lazyfs run --name NAME` started; end with its exit code.

    It has the variables, user, directory and rights of the container's first process, unless told otherwise.
    """
    if tty and interactive and not sys.stdin.isatty():
        raise click.UsageError("-t with -i takes a terminal: standard input is none")
    pairs = tuple(variables(env_files, env, os.environ))
    place = container_places(config).find(name)
    if place is None:
        raise ContainerError(f"no container named {name!r} is running; lazyfs stats lists those that are")
    words = enter(place, Entering(command, pairs, user, workdir, terminal=tty))
    if not interactive:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout.flush()
    os.execv(words[0], words)  # noqa: S606  # no shell is wanted: the words are the runtime's


exec = enter_container  # noqa: A001  # the command's name
