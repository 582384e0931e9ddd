"""explain: how mounts are read, and what their readers waited for."""

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import click

from indexer.boot_pack import PackLayer
from indexer.errors import IndexerError
from lazyfs.cache.cache import Cache
from lazyfs.cli.asking import ask_mounts, write_each
from lazyfs.cli.completing import complete_explained, complete_image
from lazyfs.cli.options import CACHE, configured_by
from lazyfs.cli.output import complain, human, print_json, shown, write_line, write_table
from lazyfs.cli.service import DEFAULT_SOCKET as DAEMON_SOCKET
from lazyfs.config import Config
from lazyfs.errors import LazyfsError, NotMounted
from lazyfs.image.advice import advice
from lazyfs.image.boot.trace_files import FilesOfLayer, find_head
from lazyfs.printable import one_line

_LAZY: Final = "yes: content is fetched when it is read"
_MOUNTS_SHOWN: Final = 4


@click.command()
@configured_by(CACHE)
@click.argument("about", metavar="[DIRECTORY|IMAGE]", required=False, shell_complete=complete_explained)
@click.option(
    "--daemon", is_flag=False, flag_value=str(DAEMON_SOCKET), metavar="[SOCKET]",
    shell_complete=complete_image,
    help=f"Of the images of lazyfs daemon, or of IMAGE alone [default: at {DAEMON_SOCKET}].",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def explain(config: Config, about: str | None, daemon: str | None, as_json: bool) -> None:
    """Say how the mount at DIRECTORY is read, what was fetched for whom, and what its readers waited for.

    DIRECTORY may be the name of a container that `lazyfs run` runs, or the root of one that containerd or
    Podman runs; without it, of all mounts of lazyfs mount and run. A layer is lazy if there is an index of
    it; a boot pack brings what a start reads (lazyfs optimize). Requests are for readers (demand), for the
    boot pack, ahead of readers (read-ahead) or in the background (mount --background).

    With --daemon the same of what containerd's and Podman's containers read, for each image since its layers
    were opened; what several images have in common counts for each of them. SOCKET begins with / or a dot.
    """
    if "" in {about, daemon}:
        raise click.UsageError("the name is empty")
    one = about is not None and (daemon is None or _is_path(about))
    answers = _ask(config, about, daemon)
    for answer in answers:
        _add_paths(answer)
        answer["advice"] = advice(answer)
    if as_json:
        print_json(answers[0] if one else answers)
    elif answers or daemon is None:
        write_each(answers, _print)
    else:
        complain("the daemon has no image mounted or open")


def _ask(config: Config, about: str | None, daemon: str | None) -> list[dict[str, Any]]:
    if daemon is None:
        return _ask_mounts(config, Path(about) if about is not None else None)
    from lazyfs.cli.service_explain import explain_images, explain_mount  # noqa: PLC0415  # few want it

    if about is None and not _is_path(daemon):
        daemon, about = str(DAEMON_SOCKET), daemon
    if about is not None and _is_path(about):
        return [explain_mount(Path(daemon), Path(about))]
    return explain_images(Path(daemon), about or "")


def _ask_mounts(config: Config, directory: Path | None) -> list[dict[str, Any]]:
    try:
        return ask_mounts(config, directory, "explain")
    except NotMounted:
        if directory is None or not os.path.exists(DAEMON_SOCKET):  # noqa: PTH110  # also where it may not be looked at
            raise
        from lazyfs.cli.service_explain import explain_if_served  # noqa: PLC0415  # few want it

        answer = explain_if_served(DAEMON_SOCKET, directory)
        if answer is None:
            raise
        return [answer]


def _is_path(word: str) -> bool:
    """Whether a word is a path and no image's name, which never begins so."""
    return word.startswith(("/", "."))


def _add_paths(answer: dict[str, Any]) -> None:
    """Add the files that the slowest reads were of."""
    kept = Cache(Path(answer["cache_dir"]))

    @cache
    def files_of(names: PackLayer) -> FilesOfLayer | None:
        try:
            head = find_head(kept, names)
            return FilesOfLayer(head) if head else None
        except (IndexerError, LazyfsError):
            return None

    for read in answer["slowest"]:
        files = files_of(PackLayer(read["layer"], read["toc"]))
        found = list(files.at(read["start"], read["start"] + read["size"])) if files else []
        read["path"] = shown(found[0][0]) if found else ""


def _print(answer: dict[str, Any]) -> None:
    for name, text in _lines(answer):
        write_line(f"{name:16}{text}")
    if answer["layers"]:
        _print_layers(answer["layers"])
        rows = [("fetched for", "requests", "bytes")]
        for purpose, count in answer["traffic"].items():
            rows.append((purpose, str(count["requests"]), human(count["bytes"])))
        write_table(rows, "lrr")
        _print_waits(answer["slowest"])
    for line in answer["advice"]:
        write_line(f"{'to do':16}{line}")


def _print_layers(layers: Iterable[dict[str, Any]]) -> None:
    rows = [("layer", "here", "by")]
    for layer in layers:
        share = 100 * layer["present"] / max(layer["leaves"], 1)
        streamed = "; much was read, so all of it is brought" if layer["read_whole"] else ""
        rows.append((layer["digest"][:19], f"{share:.1f} %", f"{layer['why']}{streamed}"))
    write_table(rows, "lrl")


def _print_waits(slowest: Sequence[dict[str, Any]]) -> None:
    if not slowest:
        write_line("no reader has waited")
        return
    waits = [("waited", "for", "file")]
    for read in slowest[:10]:
        cause = read["cause"] if read["came"] else f"{read['cause']}, in vain"
        waits.append((f"{1000 * read['wait_s']:.0f} ms", cause, read["path"] or "-"))
    write_table(waits, "rll")


def _lines(answer: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if "container" in answer:
        yield "container", answer["container"]
    if "mounts" in answer:
        yield from (("mounted at", text) for text in _mounts(answer["mounts"]))
    else:
        yield "mounted at", answer["mount_point"]
    yield "image", f"{answer['image']} {answer['digest']}"
    if answer.get("why_not"):
        yield "lazy", f"no: {one_line(answer['why_not'])}"
    else:
        yield "lazy", _LAZY if answer["lazy"] else "not any more: all content is here"
    if not answer["layers"]:
        return
    boot = answer["boot"]
    if boot is None:
        yield "boot pack", "not wanted"
    else:
        yield "boot pack", ": ".join(filter(None, (boot["state"], boot["why"])))


def _mounts(mounts: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Where an image of the daemon is mounted, a few of many."""
    if not mounts:
        yield "nowhere"
    for mount in mounts[:_MOUNTS_SHOWN]:
        alone = f"layer {mount['layers']} alone" if mount["alone"] else ""
        state = ": ".join(filter(None, (mount["state"], one_line(mount["why"]))))
        yield f"{mount['path']} ({', '.join(filter(None, (mount['driver'], alone, state)))})"
    if len(mounts) > _MOUNTS_SHOWN:
        yield f"and {len(mounts) - _MOUNTS_SHOWN} more places, which --json tells"
