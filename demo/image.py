"""The demo's image: three gzip layers in an OCI layout, the same bytes each time on one machine."""

import gzip
import io
import json
import os
import platform
import random
import shutil
import tarfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fcntl import LOCK_EX, flock
from hashlib import sha256
from pathlib import Path
from typing import Any

from demo import host

DATA_SIZE = 32 << 20
RECORD_SIZE = 4096
RECORD_START = 5_000 * RECORD_SIZE
HIDDEN = "etc/motd"
PROGRAM = "app/main.py"
DATA, DATA_LINK = "app/data.bin", "app/data-again.bin"

_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_ARCHITECTURES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "ppc64le": "ppc64le",
    "s390x": "s390x",
    "riscv64": "riscv64",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One member of a layer.

    Attributes:
        name: path in the image.
        host: the file, directory or symlink of this machine that it copies; or None.
        content: what a regular file holds, where it copies nothing.
        hard_link: the path in the image that it is another name of; or "".
    """

    name: str
    host: Path | None = None
    content: bytes = b""
    hard_link: str = ""


def build(folder: Path) -> Path:
    """The OCI layout of the image, made in `folder` unless it is there; its tag is "latest"."""
    layers = [system_layer(), python_layer(), app_layer()]
    layout = folder / f"image-{_inventory(layers)}"
    with (folder / "lock").open("w") as lock:
        flock(lock, LOCK_EX)
        if not layout.exists():
            for old in folder.glob("image-*"):
                shutil.rmtree(old)
            partial = layout.with_suffix(".partial")
            _write_layout(layers, partial)
            partial.rename(layout)
    return layout


def data() -> bytes:
    """A data set that does not compress, and of which the program reads one record."""
    return random.Random(1).randbytes(DATA_SIZE)


def expected_record() -> str:
    """What the program says of the record it reads."""
    return sha256(data()[RECORD_START : RECORD_START + RECORD_SIZE]).hexdigest()


def system_layer() -> list[Entry]:
    """The shell, some tools, what they need, and a greeting that another layer takes away."""
    programs = host.tools()
    return [
        *_copies([*programs, *host.shared_libraries(programs)]),
        Entry("etc/passwd", content=b"root:x:0:0:root:/:/bin/sh\n"),
        Entry(HIDDEN, content=b"A file of the lowest layer.\n"),
    ]


def python_layer() -> list[Entry]:
    """The interpreter, its standard library, and what they need."""
    files = host.library_files()
    extensions = [path for path in files if path.suffix == ".so"]
    return _copies([host.interpreter(), *host.shared_libraries([host.interpreter(), *extensions]), *files])


def app_layer() -> list[Entry]:
    """The program and its data under two names, a whiteout, and much that nobody reads."""
    directory, name = os.path.split(HIDDEN)
    return [
        Entry(f"{directory}/.wh.{name}"),
        Entry(PROGRAM, content=Path(__file__).with_name("program.py").read_bytes()),
        Entry(DATA, content=data()),
        Entry(DATA_LINK, hard_link=DATA),
        *_copies(host.bulk_files()),
    ]


def _copies(paths: Iterable[Path]) -> list[Entry]:
    """Entries for paths of this machine and all that leads to them, parents first."""
    return [
        Entry(str(path)[1:], host=path)
        for path in sorted({step for path in paths for step in host.closure(path)})
    ]


def _inventory(layers: list[list[Entry]]) -> str:
    """Twelve hexadecimal digits that change with what the layers hold."""
    known = sha256(Path(__file__).read_bytes())
    for entry in (entry for layer in layers for entry in layer):
        status = entry.host.lstat() if entry.host else None
        facts = (
            (status.st_size, status.st_mtime_ns, status.st_mode)
            if status
            else sha256(entry.content).hexdigest()
        )
        known.update(repr((entry.name, entry.hard_link, facts)).encode())
    return known.hexdigest()[:12]


def _layer_tar(entries: list[Entry]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for entry in entries:
            member, content = _member(entry)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def _member(entry: Entry) -> tuple[tarfile.TarInfo, bytes]:
    """A tar header, owned by root and of times in whole seconds, and the content that follows it."""
    member = tarfile.TarInfo(entry.name)
    content = entry.content
    if entry.hard_link:
        member.type, member.linkname = tarfile.LNKTYPE, entry.hard_link
    elif entry.host is not None:
        status = entry.host.lstat()
        member.mode, member.mtime = status.st_mode & 0o777, int(status.st_mtime)
        if entry.host.is_symlink():
            member.type, member.linkname = tarfile.SYMTYPE, str(entry.host.readlink())
        elif entry.host.is_dir():
            member.type, member.mode = tarfile.DIRTYPE, 0o755
        else:
            content = entry.host.read_bytes()
    member.size = len(content)
    return member, content


def _write_layout(layers: list[list[Entry]], out: Path) -> None:
    blobs = out / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    with ThreadPoolExecutor(2) as pool:
        tars = list(pool.map(_layer_tar, layers))
        zipped = list(pool.map(lambda tar: gzip.compress(tar, compresslevel=6, mtime=0), tars))
    config = {
        "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Cmd": [str(host.interpreter()), f"/{PROGRAM}"]},
        "rootfs": {"type": "layers", "diff_ids": [_digest(tar) for tar in tars]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": _store(blobs, _json(config), _CONFIG),
        "layers": [_store(blobs, blob, _LAYER) for blob in zipped],
    }
    descriptor = _store(blobs, _json(manifest), _MANIFEST)
    descriptor["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
    (out / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (out / "index.json").write_bytes(_json({"schemaVersion": 2, "manifests": [descriptor]}))


def _store(blobs: Path, content: bytes, media_type: str) -> dict[str, Any]:
    digest = _digest(content)
    (blobs / digest.removeprefix("sha256:")).write_bytes(content)
    return {"mediaType": media_type, "digest": digest, "size": len(content)}


def _digest(content: bytes) -> str:
    return "sha256:" + sha256(content).hexdigest()


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True).encode()
