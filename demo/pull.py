"""A full pull, as a container engine does it: download every layer, check it, unpack them in order."""

import http.client
import json
import os
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

CONNECTIONS = 3


@dataclass(frozen=True, slots=True)
class Pulled:
    """What a pull took.

    Attributes:
        image_bytes: compressed bytes of all layers.
        download_s: seconds until all were here and checked.
        unpack_s: seconds to unpack them.
    """

    image_bytes: int
    download_s: float
    unpack_s: float


def pull(address: str, repository: str, folder: Path) -> Pulled:
    """Unpack an image of a plain HTTP registry into `folder`/root."""
    began = time.monotonic()
    manifest = json.loads(_get(address, f"/v2/{repository}/manifests/latest"))
    _get(address, f"/v2/{repository}/blobs/{manifest['config']['digest']}")
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        fetch = lambda layer: _download(address, repository, layer, folder)  # noqa: E731  # one argument for map
        files = list(pool.map(fetch, manifest["layers"]))
    downloaded = time.monotonic()
    root = folder / "root"
    root.mkdir()
    for file in files:
        _unpack(file, root)
    return Pulled(
        image_bytes=sum(layer["size"] for layer in manifest["layers"]),
        download_s=downloaded - began,
        unpack_s=time.monotonic() - downloaded,
    )


def _get(address: str, path: str) -> bytes:
    connection = http.client.HTTPConnection(address)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise RuntimeError(f"GET {path}: HTTP {response.status}")
        return body
    finally:
        connection.close()


def _download(address: str, repository: str, layer: dict[str, Any], folder: Path) -> Path:
    blob = _get(address, f"/v2/{repository}/blobs/{layer['digest']}")
    actual = "sha256:" + sha256(blob).hexdigest()
    if actual != layer["digest"]:
        raise RuntimeError(f"layer {layer['digest']} came as {actual}")
    file = folder / actual.removeprefix("sha256:")
    file.write_bytes(blob)
    return file


def _unpack(layer: Path, root: Path) -> None:
    """Unpack one layer over the lower ones. No whiteout of the demo's image meets a file of its own layer."""
    owner = [] if os.geteuid() == 0 else ["--no-same-owner"]
    subprocess.run(["tar", "-xzf", layer, "-C", root, *owner], check=True, capture_output=True)
    for whiteout in [path for path in root.rglob(".wh.*") if path.is_file()]:
        hidden = whiteout.with_name(whiteout.name.removeprefix(".wh."))
        if hidden.is_dir() and not hidden.is_symlink():
            shutil.rmtree(hidden)
        else:
            hidden.unlink(missing_ok=True)
        whiteout.unlink()
