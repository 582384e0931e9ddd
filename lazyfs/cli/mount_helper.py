"""mount.lazyfs: what mount(8) runs for a file system of type "lazyfs", such as a line of /etc/fstab.

It calls `mount.lazyfs IMAGE DIRECTORY [-sfnv] [-o OPTIONS] [-t TYPE]` (mount(8), "EXTERNAL HELPERS"), and
hands on what we end with. Its -N, another mount namespace, is an error: nsenter(1) runs mount(8) in one.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import click

from lazyfs.cli.main import run
from lazyfs.cli.mounting import has_mounted, mount
from lazyfs.cli.output import complain
from lazyfs.errors import BadReference, LazyfsError
from lazyfs.exit_codes import BUG, INTERRUPTED, USAGE, exit_code, message_of

_USAGE: Final = 1  # mount(8), "EXIT STATUS"
_FAILED: Final = 32
_CODES: Final = {0: 0, USAGE: _USAGE, BUG: 4, INTERRUPTED: 8}

_NOT_FOR_FSTAB: Final = frozenset({"foreground", "as_json"})
# mount(8) does not tell helpers of "suid" and "dev", which are its defaults and not ours.
_OWN: Final = {"allow-suid": "--suid", "allow-dev": "--dev"}
_FORBIDDEN_BY: Final = {"nosuid": "--suid", "nodev": "--dev"}  # in whatever order: mount(8) changes it
_PASSED_BY: Final = frozenset({
    *("defaults", "ro", "rw", "async", "sync", "dirsync", "silent", "loud"),  # an image is never written
    *("atime", "noatime", "diratime", "nodiratime", "relatime", "norelatime", "strictatime", "nostrictatime"),
    *("lazytime", "nolazytime", "iversion", "noiversion", "mand", "nomand"),
    *("user", "nouser", "users", "nousers", "owner", "noowner", "group", "nogroup"),
    *("auto", "noauto", "nofail", "_netdev", "comment", "exec"),
})  # fmt: skip
_FOR_OTHERS: Final = ("x-", "X-")


@click.command(
    name="mount.lazyfs", context_settings={"help_option_names": ["-h", "--help"]}, no_args_is_help=True
)
@click.argument("image")
@click.argument("directory")
@click.option("-o", "words", multiple=True, metavar="OPTIONS", help="Separated by commas.")
@click.option("-t", "_type", metavar="TYPE", help="Of no meaning here.")
@click.option("-s", "sloppy", is_flag=True, help="Pass by options that there are not.")
@click.option("-f", "fake", is_flag=True, help="Mount nothing, but look at the options.")
@click.option("-n", "_no_mtab", is_flag=True, help="Of no meaning here.")
@click.option("-v", "verbose", is_flag=True, help="Say which command does the work.")
@click.version_option(package_name="lazyfs")
def helper(
    image: str, directory: str, words: Sequence[str], sloppy: bool, fake: bool, verbose: bool, **_: object
) -> int:
    """What mount(8) runs for file systems of type lazyfs, once /sbin has a link to it.

    OPTIONS are those of `lazyfs mount`, without their dashes (docs/operations.md).

    \b
      mount -t lazyfs python:3.12-slim /mnt -o driver=fuse
    """  # noqa: D301  # \b is click's mark for text that is not to be wrapped
    told = ["mount", *flags(",".join(words), sloppy=sloppy), "--", image, directory]
    if verbose:
        complain(" ".join(["running lazyfs", *told]))
    if fake or has_mounted(image, Path(directory)):  # as by `mount -a` again, which knows no daemons
        return 0
    return run(told)


def flags(words: str, *, sloppy: bool = False) -> list[str]:
    """Options of a file system table, as those of `lazyfs mount`.

    Raises:
        BadReference: there is no such option.
    """
    found: list[str] = []
    forbidden = set()
    for word in filter(None, words.split(",")):
        name = word.partition("=")[0]
        if flag := _FORBIDDEN_BY.get(name):
            forbidden.add(flag)
        elif option := _OPTIONS.get(name.replace("_", "-")):
            found.append(option + word.removeprefix(name))
        elif name not in _PASSED_BY and not name.startswith(_FOR_OTHERS) and not sloppy:
            raise BadReference(f"no mount option {name!r}; lazyfs mount --help tells which there are")
    return [flag for flag in found if flag not in forbidden]


def _options() -> Iterator[tuple[str, str]]:
    for param in mount.params:
        if isinstance(param, click.Option) and param.name not in _NOT_FOR_FSTAB:
            for option in (*param.opts, *param.secondary_opts):
                yield option.lstrip("-"), option


_OPTIONS: Final = {**dict(_options()), **_OWN}


def main() -> None:
    """Mount as mount(8) asks, and end with a code that it knows."""
    try:
        code = helper.main(prog_name="mount.lazyfs", standalone_mode=False)
    except click.ClickException as error:
        complain(error.format_message())
        sys.exit(_USAGE)
    except LazyfsError as error:
        complain(message_of(error))
        code = exit_code(error)
    sys.exit(_CODES.get(code, _FAILED))
