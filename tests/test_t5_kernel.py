"""The kernel reads our metadata image by itself, with the uncompressed layers as its devices."""

import json
import subprocess
import sys

import pytest

from tests.support.kernel_erofs import mounted
from tests.support.lab import image_names
from tests.support.oracle import compare_trees


def _indexer(*arguments):
    subprocess.run(
        [sys.executable, "-m", "indexer", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL
    )


@pytest.mark.parametrize("name", image_names())
def test_the_kernel_shows_the_tree_that_umoci_unpacks(name, lab, unpacked, tmp_path):
    layout = lab.image(name)
    blobs = layout / "blobs" / "sha256"
    index = json.loads((layout / "index.json").read_bytes())
    manifest = json.loads((blobs / index["manifests"][0]["digest"][7:]).read_bytes())
    tocs, devices = [], []
    for number, layer in enumerate(manifest["layers"]):
        blob, toc, tar = blobs / layer["digest"][7:], tmp_path / f"{number}.toc", tmp_path / f"{number}.tar"
        _indexer("build", blob, toc)
        with tar.open("wb") as out:
            zipped = layer["mediaType"].endswith("gzip")
            subprocess.run(["gzip", "-dc", blob] if zipped else ["cat", blob], stdout=out, check=True)
        out_size = tar.stat().st_size
        with tar.open("ab") as out:
            out.truncate(-(-out_size // 512) * 512)
        tocs.append(toc)
        devices.append(tar)
    image = tmp_path / "image.erofs"
    _indexer("compile", image, *tocs)
    with mounted(image, devices) as root:
        assert compare_trees(unpacked(name), root) == []
