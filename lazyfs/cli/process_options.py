"""Options that say what runs in a container, and how: of the commands that start one."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

import click

from lazyfs.cli.containers import variables
from lazyfs.cli.options import PATH
from lazyfs.container.confinement import confine
from lazyfs.container.given import parse_device, parse_size, parse_tmpfs, parse_volume
from lazyfs.container.process import Wishes, parse_entrypoint

P = ParamSpec("P")
R = TypeVar("R")

_OPTIONS: Final = (
    click.option(
        "-v",
        "--volume",
        "volumes",
        multiple=True,
        metavar="SRC:DST[:ro]",
        help="Show SRC of the host at DST.",
    ),
    click.option(
        "-e", "--env", "env", multiple=True, metavar="NAME[=VALUE]", help="Set a variable, or pass ours on."
    ),
    click.option(
        "--tmpfs",
        "tmpfs",
        multiple=True,
        metavar="DST[:OPTION,...]",
        help="Memory to write to at DST, as size=64m,exec.",
    ),
    click.option(
        "--device",
        "devices",
        multiple=True,
        metavar="SRC[:DST][:rwm]",
        help="Let it use a device of the host.",
    ),
    click.option(
        "--shm-size", metavar="SIZE", default="64m", show_default=True, help="How much /dev/shm holds, as 2g."
    ),
    click.option("--env-file", "env_files", multiple=True, type=PATH, help="Variables, one a line."),
    click.option("-w", "--workdir", help="Where the command starts."),
    click.option(
        "-u", "--user", metavar="USER[:GROUP]", help="Who runs it, by the image's /etc/passwd or by number."
    ),
    click.option(
        "--entrypoint", metavar="WORD", help="What stands before the command; a JSON array for more words."
    ),
    click.option(
        "--net",
        "network",
        type=click.Choice(["host", "none"]),
        default="host",
        show_default=True,
        help="Its network.",
    ),
    click.option(
        "--cap-add", "added", multiple=True, metavar="NAME", help="A capability more that it gets, or ALL."
    ),
    click.option(
        "--cap-drop",
        "dropped",
        multiple=True,
        metavar="NAME",
        help="A capability that it does not get, or ALL.",
    ),
    click.option(
        "--security-opt",
        "security",
        multiple=True,
        metavar="OPTION",
        help="seccomp=unconfined, seccomp=FILE with a profile, or no-new-privileges.",
    ),
    click.option("--read-only", is_flag=True, help="Let it write to volumes only."),
    click.option("--hostname", default="", help="Its name for itself."),
)


def process_options(command: Callable[P, R]) -> Callable[P, R]:
    """Add these options to a command; `wishes_of` takes their arguments."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def wishes_of(
    *,
    command: tuple[str, ...],
    terminal: bool,
    volumes: tuple[str, ...],
    tmpfs: tuple[str, ...],
    devices: tuple[str, ...],
    shm_size: str,
    env: tuple[str, ...],
    env_files: tuple[Path, ...],
    workdir: str | None,
    user: str | None,
    entrypoint: str | None,
    network: str,
    added: tuple[str, ...],
    dropped: tuple[str, ...],
    security: tuple[str, ...],
    read_only: bool,
    hostname: str,
) -> Wishes:
    """What the user wants of the container's process, from the options as they were written."""
    return Wishes(
        command=command,
        entrypoint=None if entrypoint is None else parse_entrypoint(entrypoint),
        env=tuple(variables(env_files, env, os.environ)),
        user=user,
        working_dir=workdir,
        hostname=hostname,
        network=network,
        read_only=read_only,
        terminal=terminal,
        volumes=tuple(map(parse_volume, volumes)),
        tmpfs=tuple(map(parse_tmpfs, tmpfs)),
        devices=tuple(map(parse_device, devices)),
        shm_size=parse_size(shm_size),
        confinement=confine(added, dropped, security),
    )
