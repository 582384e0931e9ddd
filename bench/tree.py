"""The tree that is measured: a real Debian image with Python, its small files six times more, one big file.

About 60,000 entries, as a large image has them, in two gzip layers: the tree, and the file "big", which is
the tree of the image as a tar. It is made from the laboratory's python image, once. Beside it there can be an
image of nothing but a longer file, that tar several times.
"""

import gzip
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

_COPIES: Final = 6
_LONG: Final = 5
_SMALL: Final = 16 << 10
_PIECE: Final = 1 << 20
_TAG: Final = "latest"


@dataclass(frozen=True, slots=True)
class Tree:
    """The same tree in all forms.

    Attributes:
        home: the folder of all that follows.
    """

    home: Path

    @property
    def layout(self) -> Path:
        """An OCI layout with the tag "latest"."""
        return self.home / "layout"

    @property
    def reference(self) -> str:
        """The layout as lazyfs names it."""
        return f"oci:{self.layout}:{_TAG}"

    @property
    def unpacked(self) -> Path:
        """Plain files."""
        return self.home / "unpacked"

    @property
    def tar(self) -> Path:
        """One uncompressed tar of it all."""
        return self.home / "tree.tar"

    def layers(self) -> list[tuple[str, int]]:
        """Digest and size of the compressed layers, the big file last."""
        return layers_of(self.layout)


def layers_of(layout: Path) -> list[tuple[str, int]]:
    """Digest and size of the compressed layers of a layout's image, from the lowest up."""

    def document(digest: str) -> Any:
        return json.loads((layout / "blobs" / "sha256" / digest.removeprefix("sha256:")).read_bytes())

    index = json.loads((layout / "index.json").read_text())
    manifest = document(index["manifests"][0]["digest"])
    return [(layer["digest"], layer["size"]) for layer in manifest["layers"]]


def make_tree(home: Path, rootfs: Path) -> Tree:
    """The tree under `home`, made of the unpacked image `rootfs` unless it is there. Needs root."""
    tree = Tree(home)
    if home.exists():
        return tree
    partial = Tree(home.with_name(home.name + ".partial"))
    shutil.rmtree(partial.home, ignore_errors=True)
    partial.home.mkdir(parents=True)
    base, big = partial.home / "base.tar", partial.home / "big.tar"
    with tarfile.open(base, "w", format=tarfile.PAX_FORMAT) as tar:
        for path, name in _members(rootfs):
            tar.add(path, name, recursive=False)
    original = partial.home / "original.tar"
    with tarfile.open(original, "w", format=tarfile.PAX_FORMAT) as tar:
        for path in _walk(rootfs):
            tar.add(path, str(path.relative_to(rootfs)), recursive=False)
    with tarfile.open(big, "w", format=tarfile.PAX_FORMAT) as tar:
        tar.add(original, "big")
    partial.unpacked.mkdir()
    for layer in (base, big):
        _run("tar", "-xpf", str(layer), "-C", str(partial.unpacked))
    shutil.copyfile(base, partial.tar)
    _run("tar", "-Af", str(partial.tar), str(big))
    _write_layout(partial.layout, [base, big])
    for scratch in (base, big, original):
        scratch.unlink()
    partial.home.rename(home)
    return tree


def make_long(tree: Tree) -> Path:
    """A layout of one gzip layer with one file, "big": the tree's several times over. Made if need be."""
    layout = tree.home / "long"
    if layout.exists():
        return layout
    partial, scratch = tree.home / "long.partial", tree.home / "long.scratch"
    for leftover in (partial, scratch):
        shutil.rmtree(leftover, ignore_errors=True)
    scratch.mkdir()
    with (scratch / "big").open("wb") as file:
        for _ in range(_LONG):
            with (tree.unpacked / "big").open("rb") as once:
                shutil.copyfileobj(once, file, _PIECE)
    with tarfile.open(scratch / "big.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.add(scratch / "big", "big")
    _write_layout(partial, [scratch / "big.tar"])
    shutil.rmtree(scratch)
    partial.rename(layout)
    return layout


def _members(rootfs: Path) -> Iterator[tuple[Path, str]]:
    entries = list(_walk(rootfs))
    for path in entries:
        yield path, str(path.relative_to(rootfs))
    for copy in range(1, _COPIES + 1):
        top = f"copies/{copy}"
        yield rootfs, top
        for path in entries:
            if path.is_symlink() or path.is_dir() or (path.is_file() and path.stat().st_size < _SMALL):
                yield path, f"{top}/{path.relative_to(rootfs)}"


def _walk(top: Path) -> Iterator[Path]:
    """All below, sorted, directories before what they hold."""
    for folder, folders, files in os.walk(top):
        folders.sort()
        for name in sorted((*folders, *files)):
            path = Path(folder, name)
            if path.is_symlink() or path.is_dir() or path.is_file():
                yield path


def _write_layout(layout: Path, tars: list[Path]) -> None:
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    layers, diff_ids = [], []
    for tar in tars:
        diff_ids.append(_digest(tar))
        compressed = tar.with_suffix(".gz")
        with tar.open("rb") as source, gzip.GzipFile(compressed, "wb", 6, mtime=0) as target:
            shutil.copyfileobj(source, target, _PIECE)
        digest, size = _digest(compressed), compressed.stat().st_size
        compressed.rename(blobs / digest.removeprefix("sha256:"))
        layers.append(_descriptor("layer.v1.tar+gzip", digest, size))
    config = {
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }  # fmt: skip
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": _put(blobs, "config.v1+json", config),
        "layers": layers,
    }
    top = _put(blobs, "manifest.v1+json", manifest)
    top["annotations"] = {"org.opencontainers.image.ref.name": _TAG}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [top]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def _put(blobs: Path, kind: str, document: dict[str, Any]) -> dict[str, Any]:
    data = json.dumps(document).encode()
    name = sha256(data).hexdigest()
    (blobs / name).write_bytes(data)
    return _descriptor(kind, f"sha256:{name}", len(data))


def _descriptor(kind: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": digest, "size": size}


def _digest(path: Path) -> str:
    digest = sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return f"sha256:{digest.hexdigest()}"


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
