"""du, diff, layers: what an image holds, by directory, by layer, and beside another."""

from typing import Any

import click

from lazyfs.api import AsyncImage
from lazyfs.cli.completing import complete_image
from lazyfs.cli.options import configured
from lazyfs.cli.output import human, print_json, shown, write_line, write_table
from lazyfs.cli.running import with_image, with_two_images
from lazyfs.config import Config
from lazyfs.image.inside.difference import Change, Difference, Kind
from lazyfs.image.inside.layer_report import LayerReport, created_by
from lazyfs.image.inside.usage import LayerUsage, Usage

_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_human_option = click.option("-H", "--human", "humans", is_flag=True, help="Sizes like 1K, 234M, 2G.")


@click.command()
@configured
@click.argument("image", shell_complete=complete_image)
@click.argument("path", default="/")
@click.option("-a", "--all", "files", is_flag=True, help="Files too, not only directories.")
@click.option("-d", "--depth", type=click.IntRange(min=0), help="Show so many directories deep only.")
@click.option("-s", "--summarize", is_flag=True, help="As --depth 0: the total alone.")
@click.option("--sort", "by_size", is_flag=True, help="The largest first.")
@click.option("--layers", is_flag=True, help="By layer: how much of PATH each has brought.")
@_human_option
@_json_option
def du(
    config: Config,
    image: str,
    path: str,
    files: bool,
    depth: int | None,
    summarize: bool,
    by_size: bool,
    layers: bool,
    humans: bool,
    as_json: bool,
) -> None:
    """How many bytes of file content the directories of IMAGE hold, below PATH.

    Sizes are those of the contents, as du --apparent-size counts them, without anything for directories and
    links themselves; hard links count once. Nothing of the layers is fetched.
    """

    async def work(opened: AsyncImage) -> None:
        if layers:
            _tell_layers(opened.layer_usage(path), humans=humans, as_json=as_json)
            return
        deepest = 0 if summarize else depth
        found = (line for line in opened.usage(path, files=files) if deepest is None or line.depth <= deepest)
        lines = sorted(found, key=lambda line: (-line.size, line.path)) if by_size else list(found)
        _tell_usage(lines, humans=humans, as_json=as_json)

    with_image(config, image, work)


def _tell_usage(lines: list[Usage], *, humans: bool, as_json: bool) -> None:
    if as_json:
        rows = [{"path": "/" + shown(line.path), "size": line.size, "files": line.files} for line in lines]
        print_json(rows)
        return
    for line in lines:
        write_line(f"{_size(line.size, humans=humans)}\t/{shown(line.path)}")


def _tell_layers(layers: list[LayerUsage], *, humans: bool, as_json: bool) -> None:
    if as_json:
        print_json([layer._asdict() for layer in layers])
        return
    rows = [["SIZE", "FILES", "COMPRESSED", "LAYER"]]
    for layer in layers:
        sizes = _size(layer.size, humans=humans), _size(layer.compressed_size, humans=humans)
        rows.append([sizes[0], str(layer.files), sizes[1], layer.digest])
    write_table(rows, "rrrl")


def _size(size: int, *, humans: bool) -> str:
    return human(size) if humans else str(size)


@click.command()
@configured
@click.argument("image1", shell_complete=complete_image)
@click.argument("image2", shell_complete=complete_image)
@click.argument("path", default="/")
@click.option("--times", is_flag=True, help="Modification times count too.")
@click.option(
    "--quick", is_flag=True, help="Read no content; where size and time agree, take it for the same."
)
@click.option("-0", "--print0", is_flag=True, help="End lines with NUL.")
@_json_option
def diff(
    config: Config,
    image1: str,
    image2: str,
    path: str,
    times: bool,
    quick: bool,
    print0: bool,
    as_json: bool,
) -> int:
    """What IMAGE2 has otherwise than IMAGE1: A added, D deleted, C changed, and of a change what.

    Contents are read only where sizes and indexes leave the question open: never where both images take a
    file from the same layer. Exit code 0 if all is the same, 1 if not.
    """

    async def work(old: AsyncImage, new: AsyncImage) -> Difference:
        return await old.difference(new, path, times=times, quick=quick)

    found = with_two_images(config, (image1, image2), work)
    if as_json:
        print_json(
            {
                "changes": [_change_facts(change) for change in found.changes],
                "read_pairs": found.read_pairs,
                "read_bytes": found.read_bytes,
            }
        )
    else:
        for change in found.changes:
            write_line(_change_line(change), b"\0" if print0 else b"\n")
    return 1 if found.changes else 0


def _change_facts(change: Change) -> dict[str, Any]:
    facts: dict[str, Any] = {"kind": change.kind.name.lower(), "path": "/" + shown(change.path)}
    if change.kind is Kind.CHANGED:
        facts["aspects"] = {
            name: None if name == "content" else {"old": old, "new": new}
            for name, (old, new) in change.aspects.items()
        }
    return facts


def _change_line(change: Change) -> str:
    aspects = ",".join(change.aspects)
    return f"{change.kind.value} /{shown(change.path)}" + (f"\t{aspects}" if aspects else "")


@click.command()
@configured
@click.argument("image", shell_complete=complete_image)
@click.option(
    "-n",
    "--top",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    help="How many wasted files to list.",
)
@_human_option
@_json_option
def layers(config: Config, image: str, top: int, humans: bool, as_json: bool) -> None:
    """What each layer of IMAGE adds, changes and hides, and which bytes are shipped for nobody to see.

    CONTENT is the layer's file content, WASTED what of it upper layers replace or remove; efficiency is the
    share that is seen. Nothing of the layers is fetched.
    """

    async def work(opened: AsyncImage) -> None:
        facts = _report_facts(opened, await opened.layers())
        if as_json:
            print_json(facts)
        else:
            _tell_report(facts, top, humans=humans)

    with_image(config, image, work)


def _report_facts(opened: AsyncImage, report: LayerReport) -> dict[str, Any]:
    described = opened.image.resolved.layers
    commands = created_by(opened.config, len(described))
    return {
        "image": opened.name,
        "digest": opened.digest,
        "layers": [
            {
                "number": number,
                "digest": layer.descriptor.digest,
                "compressed_size": layer.descriptor.size,
                "size": changes.size,
                "added": changes.added._asdict(),
                "changed": changes.changed._asdict(),
                "hidden": changes.hidden._asdict(),
                "wasted": changes.wasted,
                "created_by": command,
            }
            for number, (layer, changes, command) in enumerate(
                zip(described, report.layers, commands, strict=True)
            )
        ],
        "size": report.size,
        "wasted": report.wasted,
        "efficiency": report.efficiency,
        "wasted_files": [
            {"path": "/" + shown(file.path), "size": file.size, "layers": file.layers}
            for file in report.wasted_files
        ],
    }


def _tell_report(facts: dict[str, Any], top: int, *, humans: bool) -> None:
    rows = [["#", "COMPRESSED", "CONTENT", "ADDED", "CHANGED", "HIDDEN", "WASTED", "CREATED BY"]]
    for layer in facts["layers"]:
        counts = [str(layer[name]["names"]) for name in ("added", "changed", "hidden")]
        sizes = [_size(layer[name], humans=humans) for name in ("compressed_size", "size", "wasted")]
        command = " ".join(layer["created_by"].split())[:100]
        rows.append([str(layer["number"]), *sizes[:2], *counts, sizes[2], command])
    write_table(rows, "rrrrrrrl")
    write_line("")
    wasted, size = (_size(facts[name], humans=humans) for name in ("wasted", "size"))
    write_line(f"efficiency {100 * facts['efficiency']:.2f} %, {wasted} of {size} wasted")
    if facts["wasted_files"] and top:
        write_line("")
        worst = facts["wasted_files"][:top]
        rows = [["WASTED", "COPIES", "PATH"]]
        rows += [[_size(f["size"], humans=humans), str(len(f["layers"])), f["path"]] for f in worst]
        write_table(rows, "rrl")
