"""Sizes at which a design shows: a million files, 500 layers, a layer of 40 GB. Run by `make stress`."""

import json
import os
import re
import subprocess
from hashlib import sha256
from pathlib import Path

import pytest

from tests.support.images import build_image, encode, write_layout
from tests.support.runner import executable
from tests.support.tars import directory, file, raw_header, tar

pytestmark = [pytest.mark.stress, pytest.mark.timeout(1800)]

GIB = 1 << 30
END = bytes(1024)


@pytest.fixture
def point(tmp_path: Path) -> Path:
    path = tmp_path / "mnt"
    path.mkdir()
    return path


def _anonymous_kib(pid: int) -> int:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(re.search(r"^Anonymous:\s+(\d+)", rollup, re.MULTILINE)[1])


@pytest.fixture(scope="module")
def million(tmp_path_factory) -> str:
    """A million files in 40 layers."""
    layers = []
    for layer in range(40):
        entries = []
        for folder in range(25):
            path = b"data/%d/%d" % (layer, folder)
            entries.append(directory(path))
            entries += [file(path + b"/file-%d" % n, b"") for n in range(1000)]
        layers.append(tar(*entries))
    layout = tmp_path_factory.mktemp("million") / "layout"
    return f"oci:{write_layout(layout, {'latest': build_image(layers)})}"


@pytest.mark.parametrize("driver", ["erofs", "fuse"])
def test_a_million_files_take_little_memory(driver, million, lazyfs, point):
    lazyfs("mount", "--driver", driver, million, point)
    lazyfs("umount", point)
    lazyfs("mount", "--driver", driver, million, point)  # from the compiled metadata image
    found = subprocess.run(["find", point, "-type", "f"], stdout=subprocess.PIPE, check=True)
    assert found.stdout.count(b"\n") == 1_000_000
    pid = json.loads(lazyfs("stats", point, "--json").stdout)["pid"]
    anonymous = _anonymous_kib(pid)
    lazyfs("umount", point)
    assert anonymous < 100 << 10


@pytest.mark.parametrize("driver", ["erofs", "fuse"])
def test_500_layers_mount(driver, lazyfs, tmp_path, point):
    layers = [tar(file(b"f%d" % n, b"%d" % n)) for n in range(500)]
    layout = write_layout(tmp_path / "many", {"latest": build_image(layers)})
    lazyfs("mount", "--driver", driver, f"oci:{layout}", point)
    assert [(point / f"f{n}").read_bytes() for n in range(500)] == [b"%d" % n for n in range(500)]
    lazyfs("umount", point)


def _huge_layout(path: Path, size: int) -> None:
    """An image with one plain layer: a file of `size` zeros, then a small one. Holes on disk."""
    blobs = path / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    layer = path / "layer"
    with layer.open("wb") as out:
        out.write(raw_header(b"zeros", size=size))
        out.seek(size, os.SEEK_CUR)
        out.write(raw_header(b"last", size=4) + b"last".ljust(512, b"\0") + END)
    hasher = sha256()
    with layer.open("rb") as content:
        while piece := content.read(1 << 22):
            hasher.update(piece)
    digest, length = f"sha256:{hasher.hexdigest()}", layer.stat().st_size
    layer.rename(blobs / hasher.hexdigest())

    def put(data: bytes, media_type: str) -> dict:
        name = sha256(data).hexdigest()
        (blobs / name).write_bytes(data)
        return {
            "mediaType": f"application/vnd.oci.image.{media_type}",
            "digest": f"sha256:{name}",
            "size": len(data),
        }

    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [digest]}}
    layers = [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": length}]
    manifest = put(
        encode({"schemaVersion": 2, "config": put(encode(config), "config.v1+json"), "layers": layers}),
        "manifest.v1+json",
    )
    named = manifest | {"annotations": {"org.opencontainers.image.ref.name": "latest"}}
    (path / "index.json").write_bytes(encode({"schemaVersion": 2, "manifests": [named]}))
    (path / "oci-layout").write_bytes(b'{"imageLayoutVersion":"1.0.0"}')


def test_a_layer_of_40_gb_is_indexed_in_bounded_memory_and_read_at_its_end(lazyfs, tmp_path, point):
    layout = tmp_path / "layout"
    _huge_layout(layout, 40 * GIB)
    reference = f"oci:{layout}"
    index = subprocess.Popen(
        [executable(), "index", reference, "--cache-dir", str(lazyfs.cache_dir)], env=lazyfs.environment()
    )
    _, status, usage = os.wait4(index.pid, 0)
    index.returncode = os.waitstatus_to_exitcode(status)
    assert index.returncode == 0
    assert usage.ru_maxrss < 600 << 10  # KiB
    lazyfs("mount", reference, point)
    assert (point / "last").read_bytes() == b"last"
    assert (point / "zeros").stat().st_size == 40 * GIB
    with (point / "zeros").open("rb") as zeros:
        zeros.seek(40 * GIB - 4096)
        assert zeros.read() == bytes(4096)
    lazyfs("umount", point)
    usage_kinds = json.loads(lazyfs("cache", "usage", "--json").stdout)["kinds"]
    assert usage_kinds["layers"] < 1 << 30
