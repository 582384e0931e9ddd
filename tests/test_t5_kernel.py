"""The kernel reads our metadata image by itself, with the uncompressed layers as its devices."""

import json
import subprocess
import sys

import pytest

from tests.support.kernel_erofs import attached, mounted
from tests.support.lab import image_names
from tests.support.oracle import compare_trees
from tests.support.overlay import overlay_mounted


def _indexer(*arguments):
    subprocess.run(
        [sys.executable, "-m", "indexer", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL
    )


def _indexed(layout, where):
    """Indexes of an image's layers, and the layers as files of whole blocks: the lowest first, and by tag."""
    blobs = layout / "blobs" / "sha256"
    index = json.loads((layout / "index.json").read_bytes())
    manifest = json.loads((blobs / index["manifests"][0]["digest"][7:]).read_bytes())
    tocs, devices, tags = [], [], []
    for number, layer in enumerate(manifest["layers"]):
        blob, toc, tar = blobs / layer["digest"][7:], where / f"{number}.toc", where / f"{number}.tar"
        _indexer("build", blob, toc)
        with tar.open("wb") as out:
            zipped = layer["mediaType"].endswith("gzip")
            subprocess.run(["gzip", "-dc", blob] if zipped else ["cat", blob], stdout=out, check=True)
        out_size = tar.stat().st_size
        with tar.open("ab") as out:
            out.truncate(-(-out_size // 512) * 512)
        tocs.append(toc)
        devices.append(tar)
        tags.append(layer["digest"][7:].encode())
    return tocs, devices, dict(zip(tags, devices, strict=True))


@pytest.mark.parametrize("name", image_names())
def test_the_kernel_shows_the_tree_that_umoci_unpacks(name, lab, unpacked, tmp_path):
    tocs, devices, by_tag = _indexed(lab.image(name), tmp_path)
    image = tmp_path / "image.erofs"
    _indexer("compile", image, *tocs)
    with mounted(image, devices) as root:
        assert compare_trees(unpacked(name), root) == []
    alone = [tmp_path / f"{number}.erofs" for number in range(len(tocs))]
    for number, path in enumerate(alone):
        _indexer("compile", "--alone", path, *tocs[: number + 1])
    with (
        attached(alone, by_tag, tmp_path / "layers") as lowers,
        overlay_mounted(lowers, tmp_path / "merged") as root,
    ):
        # Of a file that only some names of are left, overlayfs shows how many there were.
        assert compare_trees(unpacked(name), root, ignore={"nlink"}) == []
