"""What the shell is told when somebody presses Tab: images, mounts and containers that are known here.

Only files of this machine are looked at. Whatever goes wrong, nothing is said: it would stand in the middle
of what is being typed.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:  # no command needs these to run
    from click.shell_completion import CompletionItem

    from lazyfs.config import Config

COMPLETE_VARIABLE: Final = "_LAZYFS_COMPLETE"

_SAFE: Final = re.compile(r"[\w@%+=:,./-]+", re.ASCII)  # what means nothing to any shell
_SETTINGS: Final = ("cache_dir", "config_file")
_REGISTRY: Final = "docker://"
_HUB: Final = "docker.io/"
_LIBRARY: Final = "docker.io/library/"
_TRANSPORTS: Final = {"oci:": "dir", "oci-archive:": "file", "docker-archive:": "file"}

_Known = Callable[[click.Context, str], Iterator[str]]
"""Gives words that may be meant by what is typed so far."""

Complete = Callable[[click.Context, click.Parameter, str], "list[CompletionItem]"]
"""As click calls it for a parameter: gives words that begin with what is typed so far."""


def _images(ctx: click.Context, incomplete: str) -> Iterator[str]:
    """Names of the images in the cache, the one last used first, each as it is begun."""
    from lazyfs.cache.catalogue import Catalogue  # noqa: PLC0415  # only who presses Tab pays for it
    from lazyfs.cache.scratch import Scratch  # noqa: PLC0415  # only who presses Tab pays for it

    root = _config(ctx).cache_dir
    for listed in Catalogue(root / "catalogue", Scratch(root / "tmp")).images():
        yield from [word for word in _spellings(listed.image.name) if word.startswith(incomplete)][:1]


def _spellings(name: str) -> Sequence[str]:
    """How the name of an image may be typed, the shortest first."""
    if not name.startswith(_REGISTRY):
        return [name]
    bare = name.removeprefix(_REGISTRY)
    short = bare.removeprefix(_LIBRARY) if bare.startswith(_LIBRARY) else bare.removeprefix(_HUB)
    return list(dict.fromkeys([short, bare.removeprefix(_HUB), bare, name]))


def _images_of_daemon(ctx: click.Context, incomplete: str) -> Iterator[str]:
    """As `_images`, where the command is told to ask the data daemon."""
    if ctx.params.get("daemon"):
        yield from _images(ctx, incomplete)


def _mounts(ctx: click.Context, incomplete: str) -> Iterator[str]:
    """Where `lazyfs mount` has mounted images, as seen from the working directory where they are typed so."""
    del ctx
    from lazyfs.mount_states import MountStates, runtime_directory  # noqa: PLC0415  # only who presses Tab pays for it

    for facts in MountStates(runtime_directory(os.environ)).all():
        yield from (
            (facts.mount_point,)
            if not incomplete or incomplete.startswith("/")
            else (os.path.relpath(facts.mount_point),)
        )


def _containers(ctx: click.Context, incomplete: str) -> Iterator[str]:
    """Names of containers that `lazyfs run` runs."""
    del incomplete
    from lazyfs.cli.containers import container_places  # noqa: PLC0415  # only who presses Tab pays for it

    yield from (place.path.name for place in container_places(_config(ctx)).all())


def _completing(*sources: _Known, otherwise: str = "") -> Complete:
    """Completes from what is known; where nothing is, the shell does: "dir" or "file", or "" for nothing."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> "list[CompletionItem]":
        from click.shell_completion import CompletionItem  # noqa: PLC0415  # only who presses Tab pays for it

        del param
        words = dict.fromkeys(word for source in sources for word in _quietly(source, ctx, incomplete))
        fitting = [word for word in words if word.startswith(incomplete) and _SAFE.fullmatch(word)]
        kinds = [kind for transport, kind in _TRANSPORTS.items() if incomplete.startswith(transport)]
        left_to_shell = kinds[0] if _images in sources and kinds else otherwise
        if fitting or not left_to_shell:
            return [CompletionItem(word) for word in fitting]
        return [CompletionItem(incomplete, type=left_to_shell)]

    return complete


complete_image = _completing(_images)
complete_mount = _completing(_mounts, otherwise="dir")
complete_container = _completing(_containers)
complete_changes = _completing(_containers, otherwise="dir")
complete_place = _completing(_mounts, _containers, otherwise="dir")
complete_explained = _completing(_images_of_daemon, _mounts, _containers, otherwise="dir")
complete_traced = _completing(_mounts, _images, otherwise="dir")


def _quietly(source: _Known, ctx: click.Context, incomplete: str) -> list[str]:
    try:
        return list(source(ctx, incomplete))
    except Exception:  # noqa: BLE001  # it would stand in what is being typed
        return []


def _config(ctx: click.Context) -> "Config":
    """The configuration that the command would have, as far as it says what is where."""
    from lazyfs.config import load_config  # noqa: PLC0415  # only who presses Tab pays for it

    settings: dict[str, Path | None] = dict.fromkeys(_SETTINGS)
    outer: click.Context | None = ctx
    while outer is not None:
        for name in _SETTINGS:
            settings[name] = settings[name] or outer.params.get(name)
        outer = outer.parent
    return load_config(os.environ, {"cache_dir": settings["cache_dir"]}, settings["config_file"])


def complete_quietly(work: Callable[[], object]) -> int:
    """Let click answer a shell that asks for completions; what goes wrong is no answer.

    Bash splits words at ":", "=" and "@", too, and goes on after the last of them.
    """
    from lazyfs.cli.completing_bash import mend_bash  # noqa: PLC0415  # only who presses Tab pays for it

    mend_bash()
    with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):
        try:
            work()
        except SystemExit as end:
            return int(end.code or 0)
        except Exception:  # noqa: BLE001  # it would stand in what is being typed
            return 0
    return 0
