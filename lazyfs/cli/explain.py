"""explain: how mounts are read, and what their readers waited for."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click

from indexer.boot_pack import PackLayer
from indexer.errors import IndexerError
from lazyfs.cache.cache import Cache
from lazyfs.cli.asking import ask_mounts, write_each
from lazyfs.cli.options import PATH, configured
from lazyfs.cli.output import human, print_json, shown, write_line, write_table
from lazyfs.config import Config
from lazyfs.errors import LazyfsError
from lazyfs.image.trace_files import FilesOfLayer, find_head


@click.command()
@configured
@click.argument("directory", type=PATH, required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def explain(config: Config, directory: Path | None, as_json: bool) -> None:
    """Say how the mount at DIRECTORY is read, what was fetched for whom, and what its readers waited for.

    DIRECTORY may be the name of a container that `lazyfs run` runs; without it, of all mounts. A layer is
    lazy if there is an index of it; a boot pack brings what a start reads (lazyfs optimize). Requests are for
    readers (demand), for the boot pack, ahead of readers (read-ahead) or in the background (mount
    --background).
    """
    answers = [_with_paths(answer) for answer in ask_mounts(config, directory, "explain")]
    if as_json:
        print_json(answers[0] if directory is not None else answers)
        return
    write_each(answers, _print)


def _with_paths(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer with the files that the slowest reads were of."""
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
    return answer


def _print(answer: dict[str, Any]) -> None:
    for name, text in _lines(answer):
        write_line(f"{name:16}{text}")
    rows = [("layer", "here", "by")]
    for layer in answer["layers"]:
        share = 100 * layer["present"] / max(layer["leaves"], 1)
        streamed = "; much was read, so all of it is brought" if layer["read_whole"] else ""
        rows.append((layer["digest"][:19], f"{share:.1f} %", f"{layer['why']}{streamed}"))
    write_table(rows, "lrl")
    rows = [("fetched for", "requests", "bytes")]
    for purpose, count in answer["traffic"].items():
        rows.append((purpose, str(count["requests"]), human(count["bytes"])))
    write_table(rows, "lrr")
    if not answer["slowest"]:
        write_line("no reader has waited")
        return
    waits = [("waited", "for", "file")]
    for read in answer["slowest"][:10]:
        cause = read["cause"] if read["came"] else f"{read['cause']}, in vain"
        waits.append((f"{1000 * read['wait_s']:.0f} ms", cause, read["path"] or "-"))
    write_table(waits, "rll")


def _lines(answer: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if "container" in answer:
        yield "container", answer["container"]
    yield "mounted at", answer["mount_point"]
    yield "image", f"{answer['image']} {answer['digest']}"
    lazy = (
        "yes: content is fetched when it is read" if answer["lazy"] else "not any more: all content is here"
    )
    yield "lazy", lazy
    boot = answer["boot"]
    if boot is None:
        yield "boot pack", "not wanted"
    else:
        yield "boot pack", ": ".join(filter(None, (boot["state"], boot["why"])))
