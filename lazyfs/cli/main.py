"""The group of all commands, and what becomes of errors."""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, Final

import click

from indexer.errors import IndexerError
from lazyfs import __version__
from lazyfs.cli.options import common_options, take_flags
from lazyfs.errors import LazyfsError
from lazyfs.exit_codes import BUG, INTERRUPTED, USAGE, exit_code

_COMMANDS: Final = {
    "mount": "mounting",
    "umount": "mounting",
    "stats": "mounting",
    "index": "images",
    "inspect": "images",
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
}


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
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="lazyfs")
@common_options
@click.pass_context
def group(context: click.Context, /, **arguments: Any) -> None:
    """Mount a container image at once and fetch only the bytes that are read.

    IMAGE is [docker://]registry/repo[:tag][@digest], oci:DIR[:TAG], oci-archive:FILE[:TAG] or
    docker-archive:FILE[:REF]. Short names are docker.io's.

    \b
    Try:
      lazyfs mount python:3.12-slim /mnt      mount it; undo with: lazyfs umount /mnt
      lazyfs ls -l python:3.12-slim /etc      look inside without a mount
      lazyfs cat python:3.12-slim /etc/os-release

    Options can also be set in ~/.config/lazyfs/config.toml, or as LAZYFS_OPTION in the environment.
    Completion: eval "$(_LAZYFS_COMPLETE=bash_source lazyfs)" (or zsh_source, fish_source).
    """  # noqa: D301  # \b is click's mark for text that is not to be wrapped
    context.obj = {name: value for name, value in take_flags(arguments).items() if value is not None}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code: answers on stdout, one line on stderr for what went wrong."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    try:
        result = group.main(arguments, prog_name="lazyfs", standalone_mode=False)
        sys.stdout.flush()
    except (click.exceptions.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except click.ClickException as error:
        error.show()
        return USAGE
    except BrokenPipeError:
        # Whoever read our answers has seen enough; nothing may be flushed to it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (LazyfsError, IndexerError, OSError) as error:
        complain(_said(error))
        return exit_code(error)
    except Exception as error:  # the last line of defence: no traceback for users
        if os.environ.get("LAZYFS_LOG_LEVEL") == "debug":
            raise
        complain(f"a bug: {type(error).__name__}: {error}; LAZYFS_LOG_LEVEL=debug shows where")
        return BUG
    return result if isinstance(result, int) else 0


def _said(error: Exception) -> str:
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}"
    return str(error) or type(error).__name__


def complain(message: str) -> None:
    """One line on stderr."""
    click.echo(f"lazyfs: {' '.join(message.split())}", err=True)
