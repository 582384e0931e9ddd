"""Options that all commands share, before or after the command's name."""

import functools
import math
import os
from collections.abc import Callable
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

_CONFIG_FLAGS: Final = (
    *("cache_dir", "cache_quota_mib", "platform", "plain_http", "offline", "hosts_dir", "log_level"),
    *("index", "index_repo", "trust_index", "require_signature", "trusted_keys"),
)

_COMMON: Final = (
    click.option("--cache-dir", type=PATH, help="Where indexes and content are kept."),
    click.option("--cache-quota-mib", type=int, metavar="MIB", help="How much disk that may take (0: any)."),
    click.option(
        "--platform", metavar="OS/ARCH[/VARIANT]", help="Which image of an index (default: this machine's)."
    ),
    click.option(
        "--plain-http/--no-plain-http",
        default=None,
        help="HTTP, not HTTPS (default: to loopback hosts only).",
    ),
    click.option("--offline", is_flag=True, default=None, help="Ask no registry; use what is here."),
    click.option("--hosts-dir", type=PATH, help="Mirrors, as containerd's hosts.toml names them."),
    click.option(
        "--index",
        type=click.Choice(["auto", "local", "registry", "none"]),
        help="Where indexes may come from: made here, published, both (auto, default), always anew (none).",
    ),
    click.option("--index-repo", metavar="REPO|oci:DIR", help="Where indexes are, if not beside the image."),
    click.option(
        "--trust-index", is_flag=True, default=None, help="Use published indexes for pinned images too."
    ),
    click.option(
        "--require-signature", is_flag=True, default=None, help="Refuse what no trusted key signed."
    ),
    click.option(
        "--trusted-key",
        "trusted_keys",
        multiple=True,
        type=PATH,
        metavar="FILE",
        callback=lambda _context, _option, files: files or None,
        help="A public key in PEM; may be repeated.",
    ),
    click.option("--config", "config_file", type=PATH, help="Configuration file to use."),
    click.option(
        "--log-level",
        type=click.Choice(["debug", "info", "warning", "error"]),
        help="What is told on stderr.",
    ),
)


def common_options(command: Callable[P, R]) -> Callable[P, R]:
    """Add the common options to a command or group."""
    for option in reversed(_COMMON):
        command = option(command)
    return command


def common_last(command: click.Command) -> None:
    """Let the help of a command, and of those below it, show its own options before the common ones."""
    command.params.sort(key=lambda param: param.name in {*_CONFIG_FLAGS, "config_file"})
    for below in command.commands.values() if isinstance(command, click.Group) else ():
        common_last(below)


def configured(command: Callable[..., R]) -> Callable[..., R]:
    """Give a command the common options, and the configuration as its first argument `config`."""

    @functools.wraps(command)
    def run(**arguments: Any) -> R:
        flags = take_flags(arguments)
        outer = click.get_current_context().find_object(dict) or {}
        merged = {**outer, **{name: value for name, value in flags.items() if value is not None}}
        config_file = merged.pop("config_file", None)
        config = load_config(os.environ, merged, config_file)
        start_log(config.log_level, "lazyfs: %(message)s")
        return command(config=config, **arguments)

    return common_options(run)


def take_flags(arguments: dict[str, Any]) -> dict[str, Any]:
    """Take the common options out of a command's arguments."""
    return {name: arguments.pop(name) for name in (*_CONFIG_FLAGS, "config_file")}
