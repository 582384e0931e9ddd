"""The group of all commands, and what becomes of errors."""

import importlib
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from functools import partial
from typing import Any, Final

import click

from indexer.errors import IndexerError
from lazyfs import __version__
from lazyfs.cli.completing import COMPLETE_VARIABLE, complete_quietly
from lazyfs.cli.guide import SECTIONS, examples_of
from lazyfs.cli.options import ALL, CACHE, SOURCE, TRUST, common_last, common_options, take_flags
from lazyfs.cli.output import STDOUT, complain, naming
from lazyfs.errors import LazyfsError
from lazyfs.exit_codes import BUG, INTERRUPTED, USAGE, exit_code, message_of

_COMMANDS: Final = {
    "mount": "mounting",
    "umount": "mounting",
    "stats": "stats",
    "explain": "explain",
    "trace": "trace",
    "run": "run",
    "exec": "exec",
    "commit": "commit",
    "index": "images",
    "optimize": "optimize",
    "inspect": "images",
    "verify": "verify",
    "ls": "files",
    "tree": "files",
    "find": "files",
    "cat": "files",
    "stat": "files",
    "cp": "files",
    "du": "inside",
    "diff": "inside",
    "layers": "inside",
    "packages": "packages",
    "export": "export",
    "login": "login",
    "logout": "login",
    "cache": "cache",
    "doctor": "doctor",
    "daemon": "service",
    "snapshotter": "snapshotter",
}

_STREAMS: Final = (("stdin", os.O_RDONLY, "r"), ("stdout", os.O_RDONLY, "w"), ("stderr", os.O_WRONLY, "w"))


class _Commands(click.Group):
    """Finds each command in its module when it is asked for: no command pays for another's imports."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"lazyfs.cli.{_COMMANDS[cmd_name]}")
        command = getattr(module, cmd_name.replace("-", "_"))
        assert isinstance(command, click.Command)
        common_last(command)
        command.epilog = command.epilog or examples_of(cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in _COMMANDS and not args[0].startswith("-"):
            meant = get_close_matches(args[0], _COMMANDS)
            raise click.UsageError(f"No such command {args[0]!r}{_suggestion(meant)}", ctx)
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except BrokenPipeError:  # as below, of the help
            _drop_output()
            raise click.exceptions.Exit(0) from None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # whoever read our answers has seen enough; click would say that we failed
            _drop_output()
            return 0

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.format_commands(ctx, formatter)
        click.Command.format_options(self, ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl(list(commands.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="lazyfs")
@common_options(ALL | CACHE | SOURCE | TRUST)
@click.pass_context
def group(context: click.Context, /, **arguments: Any) -> None:
    """Mount a container image at once and fetch only the bytes that are read.

    \b
    IMAGE is the name of an image:
      python:3.12-slim                        of Docker Hub, as docker writes it
      registry.example/team/app:1             of another registry, or app@sha256:... by digest
      oci:DIRECTORY[:TAG]                     an OCI layout on this machine
      oci-archive:FILE[:TAG]                  the same in a tar
      docker-archive:FILE[:NAME]              what docker save wrote

    \b
    Try:
      lazyfs mount python:3.12-slim /mnt      mount it; undo with: lazyfs umount /mnt
      lazyfs ls -l python:3.12-slim /etc      look inside without a mount
      lazyfs cat python:3.12-slim /etc/os-release
      lazyfs login registry.example           for private images

    Options that all commands share can also stand in ~/.config/lazyfs/config.toml, or in the environment as
    LAZYFS_OPTION (docs/configuration.md). What can go wrong, and what then: docs/errors.md.

    \b
    Completion:
      eval "$(_LAZYFS_COMPLETE=bash_source lazyfs)"  (or zsh_source, fish_source)
    """  # noqa: D301  # \b is click's mark for text that is not to be wrapped
    context.obj = {name: value for name, value in take_flags(arguments).items() if value is not None}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code: answers on stdout, one line on stderr for what went wrong."""
    _open_standard_streams()
    sys.exit(run(arguments))


def _open_standard_streams() -> None:
    """Have the three standard streams open, whoever started us without: no file may get their numbers.

    Answers on a standard output that was closed still fail: what is open there is for reading only.
    """
    for name, flags, mode in _STREAMS:
        if getattr(sys, name) is None:
            number = os.open(os.devnull, flags)  # the lowest that is free
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    if os.environ.get(COMPLETE_VARIABLE, "").endswith("_complete"):
        return complete_quietly(partial(group.main, arguments, prog_name="lazyfs"))
    try:
        result = group.main(arguments, prog_name="lazyfs", standalone_mode=False)
        with naming(STDOUT):
            sys.stdout.flush()
    except (click.exceptions.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return USAGE
    except click.ClickException as error:
        command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "lazyfs"
        complain(f"{_usage(error)}; {command} --help tells more")
        return USAGE
    except BrokenPipeError:  # as in `_Commands.invoke`
        _drop_output()
        return 0
    except (LazyfsError, IndexerError, OSError) as error:
        _drop_output()
        complain(_said(error))
        return exit_code(error)
    except Exception as error:  # the last line of defence: no traceback for users
        if os.environ.get("LAZYFS_LOG_LEVEL") == "debug":
            raise
        complain(f"a bug: {type(error).__name__}: {error}; LAZYFS_LOG_LEVEL=debug shows where")
        return BUG
    return result if isinstance(result, int) else 0


def _usage(error: click.ClickException) -> str:
    """What click says of a command line, in our manner of suggesting."""
    possibilities = getattr(error, "possibilities", None) or ()
    told = error.message if possibilities else error.format_message()
    return told.rstrip(".") + _suggestion(possibilities)


def _suggestion(meant: Sequence[str]) -> str:
    return f" (did you mean {' or '.join(meant)}?)" if meant else ""


def _drop_output() -> None:
    """Write what is left to standard output; if that fails, nothing, so that Python does not try at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _said(error: Exception) -> str:
    if isinstance(error, OSError):
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        return f"{where}{error.strerror or error}"
    return message_of(error)
