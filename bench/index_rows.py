"""Rows about making indexes: time and size, on real layers of the laboratory."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from shutil import which
from typing import Final

from bench.measure import Case, MethodFailed, Row
from bench.world import World
from indexer.build import DEFAULT_SPAN_SIZE, LayerBuilder
from indexer.toc_codec import encode_toc
from tests.support.lab import image_names
from tests.support.lab_build import LabError

_LARGE: Final = 10 << 20
_SPAN_SIZES: Final = tuple(size << 10 for size in (128, 256, 384, 512, 768, 1024))
_PYTHON: Final = sys.executable

_INDEXED_GZIP: Final = """
import sys, indexed_gzip
with indexed_gzip.IndexedGzipFile(sys.argv[1], spacing=int(sys.argv[3])) as file:
    file.build_full_index()
    file.export_index(sys.argv[2])
"""
_STORE: Final = """
import os, sys
from indexer.build import LayerBuilder
file = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
with LayerBuilder(os.path.getsize(sys.argv[1]), None, store=lambda piece: os.write(file, piece)) as builder:
    with open(sys.argv[1], "rb") as layer:
        while piece := layer.read(1 << 20):
            builder.feed(piece)
    builder.finish()
"""


def large_layers(world: World) -> dict[str, Path]:
    """Layers above 10 MB of the laboratory's images, by "image/number".

    Raises:
        MethodFailed: there is no laboratory here.
    """
    found: dict[str, Path] = {}
    try:
        layouts = {name: world.lab.image(name) for name in image_names()}
    except LabError as error:
        raise MethodFailed(str(error)) from error
    for name, layout in layouts.items():
        blobs = layout / "blobs" / "sha256"
        index = json.loads((layout / "index.json").read_text())
        digest = index["manifests"][0]["digest"].removeprefix("sha256:")
        for number, layer in enumerate(json.loads((blobs / digest).read_text())["layers"], 1):
            path = blobs / layer["digest"].removeprefix("sha256:")
            if layer["size"] > _LARGE and path.name not in {known.name for known in found.values()}:
                found[f"{name}/{number}"] = path
    return found


def build_rows(world: World) -> Iterator[Row]:
    """Making the index of a gzip layer, against reading its tar."""
    out = world.scratch / "index"
    for name, layer in large_layers(world).items():
        lazyfs = [_PYTHON, "-m", "indexer", "build", str(layer), str(out) + ".toc"]
        cases = [
            _piped("gzip", layer),
            _piped("pigz", layer),
            _command("lazyfs", lazyfs),
            Case("lazyfs, already up", partial(_build_here, layer)),
            _command("lazyfs, keeping", [_PYTHON, "-c", _STORE, str(layer), f"{out}.tar"]),
            *(_command(f"rapidgzip -P{n}", _rapidgzip(n, layer, out)) for n in (1, 2)),
            _command(
                "indexed_gzip",
                [_PYTHON, "-c", _INDEXED_GZIP, str(layer), f"{out}.gzidx", str(DEFAULT_SPAN_SIZE)],
            ),
        ]
        note = f"{layer.stat().st_size / 1e6:.0f} MB; keeping: the tar is written to a file, too"
        yield Row(f"index {name}", "s", cases, note=note)


def size_rows(world: World) -> Iterator[Row]:
    """How large an index is, and how long it takes, by span size."""
    for name, layer in large_layers(world).items():
        sizes: dict[int, tuple[float, float]] = {}
        for number, what in enumerate(("members and spans", "windows")):
            yield Row(
                f"index size of {name}, {what}",
                "%",
                [
                    Case(f"{size >> 10} KiB", partial(_share, world, layer, size, number, sizes))
                    for size in _SPAN_SIZES
                ],
                exact=True,
                note=f"of the layer's {layer.stat().st_size / 1e6:.0f} MB, by span size",
            )
        cases = [
            Case(f"{size >> 10} KiB", partial(_build, world, layer, size))
            for size in (DEFAULT_SPAN_SIZE, *(size for size in _SPAN_SIZES if size != DEFAULT_SPAN_SIZE))
        ]
        yield Row(f"index time of {name}", "s", cases, note="by span size")


def _rapidgzip(threads: int, layer: Path, out: Path) -> list[str]:
    command = [str(Path(_PYTHON).with_name("rapidgzip")), "-q", "-f", f"-P{threads}"]
    spacing = ["--chunk-size", str(DEFAULT_SPAN_SIZE >> 10), "--index-format", "gztool"]
    return [*command, *spacing, "--export-index", f"{out}.gztool", str(layer)]


def _build_here(layer: Path) -> None:
    """In this process, as the daemon does it while a layer is pulled."""
    with LayerBuilder(layer.stat().st_size, None) as builder, layer.open("rb") as file:
        while piece := file.read(1 << 20):
            builder.feed(piece)
        encode_toc(builder.finish().toc)


def _build(world: World, layer: Path, span_size: int) -> None:
    out = world.scratch / "index.toc"
    _run([_PYTHON, "-m", "indexer", "build", "--span-size", str(span_size), str(layer), str(out)])


def _share(
    world: World, layer: Path, span_size: int, number: int, known: dict[int, tuple[float, float]]
) -> float:
    if span_size not in known:
        _build(world, layer, span_size)
        head, windows = world.scratch / "index.toc", world.scratch / "index.windows"
        whole = layer.stat().st_size
        known[span_size] = (100 * head.stat().st_size / whole, 100 * windows.stat().st_size / whole)
    return known[span_size][number]


def _command(method: str, command: Sequence[str]) -> Case:
    return Case(method, partial(_run, command), partial(_check, command[0]))


def _piped(program: str, layer: Path) -> Case:
    command = ["sh", "-c", f"{program} -dc {layer} | tar t >/dev/null"]
    return Case(f"{program} -dc | tar t", partial(_run, command), partial(_check, program))


def _check(program: str) -> None:
    if not which(program):
        raise MethodFailed(f"{Path(program).name} is not installed")


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False
    )
    if done.returncode:
        last_line = os.fsdecode(done.stderr).strip().rpartition("\n")[2]
        raise MethodFailed(last_line[:200] or f"exit code {done.returncode}")
