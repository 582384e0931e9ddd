"""A world in which everything can go wrong: images, registries and files that are broken in one way each."""

import gzip
import random
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from indexer.digest import sha256_digest
from tests.support.images import (
    BuiltDocument,
    build_image,
    build_image_from_layers,
    build_index,
    encode,
    write_layout,
)
from tests.support.quick_runner import run_quickly
from tests.support.registry import Registry
from tests.support.registry_auth import Access
from tests.support.registry_tls import TestAuthority, make_authority
from tests.support.runner import LazyfsRunner, executable
from tests.support.tars import directory, file, hardlink, tar

Done = subprocess.CompletedProcess[str]

NOISE = random.Random(1).randbytes(9000)
GOOD = build_image([tar(file(b"a", b"x" * 5000), directory(b"d"), file(b"d/b", b"y"))])
OTHER = build_image([tar(file(b"z", b""))], platform="linux/s390x")
BAD_LAYERS: Mapping[str, bytes] = {
    "cut": gzip.compress(NOISE)[:-20],
    "no-tar": gzip.compress(b"hello " * 1000),
    "outward": gzip.compress(tar(file(b"../../etc/evil", b"x"))),
    "no-target": gzip.compress(tar(hardlink(b"a", b"nothing"))),
    "bomb": gzip.compress(bytes(300 << 20), 1),
    "xz": b"\xfd7zXZ\0" + bytes(100),
}


def _layout_images() -> dict[str, BuiltDocument]:
    broken = {
        name: build_image_from_layers([blob], [sha256_digest(b"")]) for name, blob in BAD_LAYERS.items()
    }
    return {"good": GOOD, "other": OTHER} | broken


def _changed(**changes: object) -> bytes:
    """The good manifest with other fields of its layer, or its configuration."""
    document = GOOD.json
    for where, fields in changes.items():
        (document["layers"][0] if where == "layer" else document["config"]).update(fields)
    return encode(document)


def _fill(registry: Registry) -> None:
    layer_type = GOOD.json["layers"][0]["mediaType"]
    registry.push("app", GOOD, "good")
    registry.push("app", build_index([OTHER]), "index")
    registry.push("app", build_image([tar(file(b"z", b""))], platform="windows/amd64"), "windows")
    manifests = {
        "encrypted": _changed(layer={"mediaType": f"{layer_type}+encrypted"}),
        "unknown": _changed(layer={"mediaType": "application/x-thing"}),
        "missing": _changed(layer={"digest": "sha256:" + "a" * 64}),
        "sha512": _changed(layer={"digest": "sha512:" + "a" * 128}),
        "size": _changed(layer={"size": GOOD.json["layers"][0]["size"] + 1}),
        "chart": _changed(config={"mediaType": "application/vnd.cncf.helm.config.v1+json"}),
        "garbage": b"<html>",
    }
    for tag, data in manifests.items():
        registry.put_manifest("app", tag, GOOD.media_type, data)
    old = encode({"schemaVersion": 1, "name": "app", "tag": "old", "fsLayers": []})
    registry.put_manifest("app", "old", "application/vnd.docker.distribution.manifest.v1+prettyjws", old)


@dataclass(frozen=True, slots=True)
class World:
    """What the cases work with.

    Attributes:
        tmp: a directory of this case.
        layout: an OCI layout with images good, other, and those of BAD_LAYERS.
        registry: a registry with tags good, index, windows and many broken ones.
        secure: the same over TLS.
        authority: who signed its certificate.
        nobody: host and port where nothing listens.
    """

    tmp: Path
    layout: Path
    registry: Registry
    secure: Registry
    authority: TestAuthority
    nobody: str

    def run(
        self,
        *arguments: str | Path,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
    ) -> Done:
        """What lazyfs said; with a home and a cache of this case."""
        return run_quickly([str(argument) for argument in arguments], self.env(env), stdin)

    def run_with(
        self, privileges: Sequence[str], *arguments: str, env: Mapping[str, str] | None = None
    ) -> Done:
        """The same with other privileges, by options of setpriv(1)."""
        words = ["setpriv", *privileges, executable(), *arguments]
        env = self.env() if env is None else env
        return subprocess.run(words, env=env, capture_output=True, text=True, check=False)

    def env(self, more: Mapping[str, str] | None = None, *, home: bool = True) -> dict[str, str]:
        """The environment of a command."""
        runner = LazyfsRunner(home=self.tmp / "home", cache_dir=self.tmp / "cache")
        given = runner.environment() | {"LAZYFS_RETRIES": "0", "LAZYFS_INDEX": "local"} | dict(more or {})
        return {name: value for name, value in given.items() if home or name != "HOME"}

    def at(self, tag: str) -> str:
        """An image in the layout."""
        return f"oci:{self.layout}:{tag}"

    def remote(self, tag: str) -> str:
        """An image in the registry."""
        return f"{self.registry.host}/app:{tag}"

    def file(self, name: str, content: str | bytes) -> Path:
        """A file of this case."""
        path = self.tmp / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def config(self, text: str) -> tuple[str, Path]:
        """`--config` with a file that says this."""
        return "--config", self.file("config.toml", text)

    @contextmanager
    def private(self, mode: str) -> Iterator[str]:
        """The host of a registry that lets in alice alone."""
        access = Access(mode=mode, users={"alice": "pw"}, anonymous_pull=False)
        with Registry(access=access) as registry:
            registry.push("app", GOOD)
            yield registry.host

    @contextmanager
    def tmpfs(self, options: str) -> Iterator[Path]:
        """A small file system of its own."""
        place = self.tmp / "disk"
        place.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", place], check=True)
        try:
            yield place
        finally:
            subprocess.run(["umount", place], check=True)

    @contextmanager
    def mounted(self) -> Iterator[Path]:
        """The good image, mounted."""
        point = self.tmp / "mnt"
        point.mkdir()
        done = self.run("mount", "--driver", "fuse", self.at("good"), point)
        assert done.returncode == 0, done.stderr
        try:
            yield point
        finally:
            self.run("umount", "--lazy", point)


@contextmanager
def open_world(shared: Path) -> Iterator["World"]:
    """The parts that cases share; `tmp` is to be replaced for each."""
    authority = make_authority(shared)
    layout = write_layout(shared / "layout", _layout_images())
    with Registry() as gone:
        nobody = gone.host
    with Registry() as registry, Registry(tls=authority.server_context()) as secure:
        _fill(registry)
        _fill(secure)
        yield World(shared, layout, registry, secure, authority, nobody)
