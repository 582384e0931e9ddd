"""The nginx image in every encoding and container format that engines write, made once.

Same tars, other compression: the tools that people use do it (gzip, pigz, bgzip, zstd, skopeo).
"""

import json
import shutil
import subprocess
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from tests.support.lab import Lab
from tests.support.lab_build import run
from tests.support.layers import zstd_frames

IMAGE = "nginx"


def _piped(*command: str) -> Callable[[Path, Path], None]:
    def encode(tar: Path, out: Path) -> None:
        with tar.open("rb") as source, out.open("wb") as target:
            subprocess.run(command, stdin=source, stdout=target, check=True)

    return encode


def _framed(tar: Path, out: Path) -> None:
    out.write_bytes(zstd_frames(tar.read_bytes(), size=1 << 20))


ENCODINGS: dict[str, tuple[str, Callable[[Path, Path], None]]] = {
    "gzip-1": ("tar+gzip", _piped("gzip", "-1", "-n")),
    "gzip-9": ("tar+gzip", _piped("gzip", "-9", "-n")),
    "pigz": ("tar+gzip", _piped("pigz", "-6", "-n")),
    "bgzip": ("tar+gzip", _piped("bgzip", "-c", "-l", "3")),
    "zstd-frame": ("tar+zstd", _piped("zstd", "-3", "-c", "-q")),
    "zstd-frames": ("tar+zstd", _framed),
    "plain": ("tar", _piped("cat")),
}
"""Name to the media type's ending and how a tar becomes a blob."""

LAZY = ("gzip-1", "gzip-9", "pigz", "bgzip", "zstd-frames", "plain")
"""The encodings that can be entered in the middle."""


def encoded(lab: Lab, name: str) -> Path:
    """An OCI layout of the image with all layers in one encoding; its tag is "latest"."""
    source = lab.image(IMAGE)
    recipe = source.name.rpartition("-")[2]
    return lab.once(f"variants/{name}-{recipe}", lambda out: _encode(source, name, out))


def archive(lab: Lab, transport: str) -> Path:
    """The image as skopeo writes it to `oci-archive` or `docker-archive`."""
    source = lab.image(IMAGE)

    def make(out: Path) -> None:
        tag = "lab/nginx:latest" if transport == "docker-archive" else "latest"
        run("skopeo", "copy", "--quiet", f"oci:{source}:latest", f"{transport}:{out}:{tag}")

    return lab.once(f"variants/{transport}-{source.name.rpartition('-')[2]}", make)


def _encode(source: Path, name: str, out: Path) -> None:
    blobs = out / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    index = json.loads((source / "index.json").read_bytes())
    manifest = json.loads(_blob(source, index["manifests"][0]["digest"]).read_bytes())
    shutil.copy(_blob(source, manifest["config"]["digest"]), blobs)
    ending, encode = ENCODINGS[name]
    for layer in manifest["layers"]:
        tar, blob = out / "layer.tar", out / "layer"
        with _blob(source, layer["digest"]).open("rb") as packed, tar.open("wb") as unpacked:
            subprocess.run(["gzip", "-dc"], stdin=packed, stdout=unpacked, check=True)
        encode(tar, blob)
        layer |= {"mediaType": f"application/vnd.oci.image.layer.v1.{ending}", **_store(blob, blobs)}
        tar.unlink()
    (out / "manifest").write_bytes(json.dumps(manifest).encode())
    index["manifests"] = [index["manifests"][0] | _store(out / "manifest", blobs)]
    (out / "index.json").write_bytes(json.dumps(index).encode())
    (out / "oci-layout").write_bytes(b'{"imageLayoutVersion":"1.0.0"}')


def _blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / "sha256" / digest.removeprefix("sha256:")


def _store(path: Path, blobs: Path) -> dict[str, str | int]:
    """Move a file among the blobs; its digest and size."""
    with path.open("rb") as file:
        hasher = sha256()
        while piece := file.read(1 << 20):
            hasher.update(piece)
    size = path.stat().st_size
    path.rename(blobs / hasher.hexdigest())
    return {"digest": f"sha256:{hasher.hexdigest()}", "size": size}
