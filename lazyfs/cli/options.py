"""Options that commands share, before or after the command's name, in sets: what counts for which of them."""

import functools
import math
import os
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

import click

from lazyfs.config import load_config
from lazyfs.log import start_log

P = ParamSpec("P")
R = TypeVar("R")


class GivenPath(click.Path):
    """A path on the command line. An empty one, as of an unset variable, is not taken for "."."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path."""
        if value == "":
            self.fail("the name is empty", param, ctx)
        return super().convert(value, param, ctx)


class Seconds(click.FloatRange):
    """A number of seconds on the command line."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number, which is finite: no range keeps "nan" out."""
        seconds = super().convert(value, param, ctx)
        if not math.isfinite(seconds):
            self.fail(f"{value} is no number of seconds", param, ctx)
        return seconds


PATH: Final = GivenPath(path_type=Path)

_COMMON: Final[Mapping[str, Callable[..., Callable[[Any], Any]]]] = {
    "cache_dir": partial(
        click.option, "--cache-dir", type=PATH, help="Where indexes and content are kept."
    ),
    "cache_quota_mib": partial(
        click.option, "--cache-quota-mib", type=int, metavar="MIB",
        help="How much disk that may take (0: any).",
    ),
    "platform": partial(
        click.option, "--platform", metavar="OS/ARCH[/VARIANT]",
        help="Which image of an index (default: this machine's).",
    ),
    "plain_http": partial(
        click.option, "--plain-http/--no-plain-http", default=None,
        help="HTTP, not HTTPS (default: to loopback hosts only).",
    ),
    "offline": partial(
        click.option, "--offline", is_flag=True, default=None,
        help="Ask no registry; use what is here.",
    ),
    "hosts_dir": partial(
        click.option, "--hosts-dir", type=PATH, help="Mirrors, as containerd's hosts.toml names them."
    ),
    "index": partial(
        click.option, "--index", type=click.Choice(["auto", "local", "registry", "none"]),
        help="Where indexes may come from: made here, published, both (auto, default), always anew (none).",
    ),
    "index_repo": partial(
        click.option, "--index-repo", metavar="REPO|oci:DIR",
        help="Where indexes are, if not beside the image.",
    ),
    "trust_index": partial(
        click.option, "--trust-index", is_flag=True, default=None,
        help="Use published indexes for images named by digest too.",
    ),
    "require_signature": partial(
        click.option, "--require-signature", is_flag=True, default=None,
        help="Refuse what no trusted key signed.",
    ),
    "trusted_keys": partial(
        click.option, "--trusted-key", "trusted_keys", multiple=True, type=PATH, metavar="FILE",
        callback=lambda _context, _option, files: files or None,
        help="A public key in PEM; may be repeated.",
    ),
    "config_file": partial(
        click.option, "--config", "config_file", type=PATH, help="Configuration file to use."
    ),
    "log_level": partial(
        click.option, "--log-level", type=click.Choice(["debug", "info", "warning", "error"]),
        help="What is told on stderr.",
    ),
}  # fmt: skip

ALL: Final = frozenset({"config_file", "log_level"})
"""What counts for every command."""
CACHE: Final = frozenset({"cache_dir", "cache_quota_mib"})
"""What counts for those that look at what is kept here."""
SOURCE: Final = frozenset({"platform", "plain_http", "offline", "hosts_dir"})
"""What counts for those that ask registries."""
TRUST: Final = frozenset({"index", "index_repo", "trust_index", "require_signature", "trusted_keys"})
"""What counts for those that open images. After any other command's name these are refused."""


def common_options(shown: Collection[str]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Add the common options to a command or group, whose help has those that are `shown`."""

    def add(command: Callable[P, R]) -> Callable[P, R]:
        for name, option in reversed(list(_COMMON.items())):
            command = option(hidden=name not in shown)(command)
        return command

    return add


def common_last(command: click.Command) -> None:
    """Let the help of a command, and of those below it, show its own options before the common ones."""
    command.params.sort(key=lambda param: param.name in _COMMON)
    for below in command.commands.values() if isinstance(command, click.Group) else ():
        common_last(below)


def configured(command: Callable[..., R]) -> Callable[..., R]:
    """Give a command that opens images the common options, and as first argument the configuration."""
    return configured_by(CACHE, SOURCE, TRUST)(command)


def configured_by(*sets: Collection[str]) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """The same for a command for which no other common options than those of the sets, and of ALL, count.

    The others may be given, as scripts do; but those of TRUST would protect nothing, and are refused.
    """
    counting = ALL.union(*sets)

    def decorate(command: Callable[..., R]) -> Callable[..., R]:
        @functools.wraps(command)
        def run(**arguments: Any) -> R:
            flags = {name: value for name, value in take_flags(arguments).items() if value is not None}
            _refuse_void(flags.keys() & (TRUST - counting))
            merged = {**(click.get_current_context().find_object(dict) or {}), **flags}
            config_file = merged.pop("config_file", None)
            config = load_config(os.environ, merged, config_file)
            start_log(config.log_level, "lazyfs: %(message)s")
            return command(config=config, **arguments)

        return common_options(counting)(run)

    return decorate


def _refuse_void(names: Collection[str]) -> None:
    """Refuse what somebody relies on, and nothing obeys."""
    context = click.get_current_context()
    for param in context.command.params:
        if param.name in names:
            raise click.UsageError(
                f"{param.opts[0]} means nothing to {context.command_path}, which opens no image; "
                "those of containerd and Podman are opened by lazyfs daemon",
                context,
            )


def take_flags(arguments: dict[str, Any]) -> dict[str, Any]:
    """Take the common options out of a command's arguments."""
    return {name: arguments.pop(name) for name in _COMMON}
