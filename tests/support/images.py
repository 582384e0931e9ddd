"""Tiny images, built in memory from the bytes of their layers' tars."""

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

from indexer.digest import sha256_digest

OCI = "application/vnd.oci.image"
DOCKER = "application/vnd.docker"
LAYER_TYPES = {
    ("oci", "none"): f"{OCI}.layer.v1.tar",
    ("oci", "gzip"): f"{OCI}.layer.v1.tar+gzip",
    ("oci", "zstd"): f"{OCI}.layer.v1.tar+zstd",
    ("docker", "none"): f"{DOCKER}.image.rootfs.diff.tar",
    ("docker", "gzip"): f"{DOCKER}.image.rootfs.diff.tar.gzip",
    ("docker", "zstd"): f"{DOCKER}.image.rootfs.diff.tar.zstd",
}
MANIFEST_TYPES = {"oci": f"{OCI}.manifest.v1+json", "docker": f"{DOCKER}.distribution.manifest.v2+json"}
CONFIG_TYPES = {"oci": f"{OCI}.config.v1+json", "docker": f"{DOCKER}.container.image.v1+json"}
INDEX_TYPES = {"oci": f"{OCI}.index.v1+json", "docker": f"{DOCKER}.distribution.manifest.list.v2+json"}


@dataclass(frozen=True, slots=True)
class BuiltDocument:
    """A manifest or an index, with everything below it.

    Attributes:
        data: its exact bytes.
        media_type: its type.
        platform: for a manifest, "os/architecture[/variant]"; "" otherwise.
        blobs: configuration and layers of this and all below, by digest.
        documents: the manifests and indexes below this one.
    """

    data: bytes
    media_type: str
    platform: str
    blobs: Mapping[str, bytes]
    documents: "tuple[BuiltDocument, ...]" = ()

    @property
    def digest(self) -> str:
        return sha256_digest(self.data)

    @property
    def descriptor(self) -> dict[str, Any]:
        link = descriptor_of(self.data, self.media_type)
        return link | {"platform": platform_fields(self.platform)} if self.platform else link

    @property
    def json(self) -> dict[str, Any]:
        """What the document says."""
        parsed: dict[str, Any] = json.loads(self.data)
        return parsed

    @property
    def layers(self) -> tuple[bytes, ...]:
        """For a manifest: its layers as the registry stores them, the lowest first."""
        return tuple(self.blobs[layer["digest"]] for layer in self.json["layers"])

    @property
    def config(self) -> bytes:
        """For a manifest: the exact bytes of its configuration."""
        return self.blobs[self.json["config"]["digest"]]


def compress(data: bytes, compression: str) -> bytes:
    """`data` as "none", "gzip" or "zstd" leaves it; the same bytes each time."""
    match compression:
        case "none":
            return data
        case "gzip":
            return gzip.compress(data, mtime=0)
        case "zstd":
            return zstandard.compress(data)
        case other:
            raise ValueError(other)


def descriptor_of(data: bytes, media_type: str) -> dict[str, Any]:
    """The descriptor of `data`, as JSON fields."""
    return {"mediaType": media_type, "digest": sha256_digest(data), "size": len(data)}


def platform_fields(platform: str) -> dict[str, str]:
    """The JSON fields of "os/architecture[/variant]"."""
    return dict(zip(("os", "architecture", "variant"), platform.split("/"), strict=False))


def encode(document: Mapping[str, Any]) -> bytes:
    """JSON in one fixed form."""
    return json.dumps(document, separators=(",", ":")).encode()


def build_image(
    tars: Sequence[bytes],
    *,
    compression: str = "gzip",
    dialect: str = "oci",
    platform: str = "linux/amd64",
    process: Mapping[str, Any] | None = None,
    annotations: Mapping[str, str] | None = None,
) -> BuiltDocument:
    """An image whose layers are `tars`, the lowest first; `process` is the `config` of its configuration."""
    return build_image_from_layers(
        [compress(tar, compression) for tar in tars],
        [sha256_digest(tar) for tar in tars],
        layer_type=LAYER_TYPES[dialect, compression],
        dialect=dialect,
        platform=platform,
        process=process,
        annotations=annotations,
    )


def build_image_from_layers(
    layers: Sequence[bytes],
    diff_ids: Sequence[str],
    *,
    layer_type: str = LAYER_TYPES["oci", "gzip"],
    dialect: str = "oci",
    platform: str = "linux/amd64",
    process: Mapping[str, Any] | None = None,
    annotations: Mapping[str, str] | None = None,
    layer_annotations: Sequence[Mapping[str, str]] | None = None,
) -> BuiltDocument:
    """An image of layers that are compressed already, or lie about what they are."""
    config = encode(
        platform_fields(platform)
        | {
            "created": "2024-01-01T00:00:00Z",
            "config": dict(process or {}),
            "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
            "history": [{"created_by": f"layer {number}"} for number in range(len(diff_ids))],
        }
    )
    links = [descriptor_of(layer, layer_type) for layer in layers]
    for link, extra in zip(links, layer_annotations or (), strict=False):
        link["annotations"] = dict(extra)
    manifest: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPES[dialect],
        "config": descriptor_of(config, CONFIG_TYPES[dialect]),
        "layers": links,
    }
    if annotations:
        manifest["annotations"] = dict(annotations)
    blobs = {sha256_digest(blob): blob for blob in (config, *layers)}
    return BuiltDocument(encode(manifest), MANIFEST_TYPES[dialect], platform, blobs)


def build_index(
    documents: Sequence[BuiltDocument], *, dialect: str = "oci", extra: Sequence[Mapping[str, Any]] = ()
) -> BuiltDocument:
    """An index of `documents`, then of the descriptors `extra` (attestations and such)."""
    index = {
        "schemaVersion": 2,
        "mediaType": INDEX_TYPES[dialect],
        "manifests": [*(document.descriptor for document in documents), *map(dict, extra)],
    }
    blobs = {digest: blob for document in documents for digest, blob in document.blobs.items()}
    return BuiltDocument(encode(index), INDEX_TYPES[dialect], "", blobs, tuple(documents))


def all_documents(document: BuiltDocument) -> list[BuiltDocument]:
    """`document` and all below it, the lowest first, as a registry wants them pushed."""
    below = [found for child in document.documents for found in all_documents(child)]
    return [*below, document]


def write_layout(directory: Path, images: Mapping[str, BuiltDocument]) -> Path:
    """An OCI image layout at `directory` that holds `images` by tag ("" for none)."""
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    entries = []
    for tag, image in images.items():
        contents = dict(image.blobs) | {found.digest: found.data for found in all_documents(image)}
        for digest, data in contents.items():
            (blobs / digest.removeprefix("sha256:")).write_bytes(data)
        annotations = {"org.opencontainers.image.ref.name": tag} if tag else {}
        entries.append(image.descriptor | ({"annotations": annotations} if tag else {}))
    (directory / "oci-layout").write_bytes(encode({"imageLayoutVersion": "1.0.0"}))
    (directory / "index.json").write_bytes(encode({"schemaVersion": 2, "manifests": entries}))
    return directory
