"""Image configurations (image-spec `config.md`) and what they say of the layers."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from msgspec import Struct, field

from indexer.digest import sha256_digest
from indexer.errors import FormatError, Unsupported
from indexer.toc import Compression
from lazyfs.oci.descriptor import Descriptor, readable_digest
from lazyfs.oci.json_fields import Fields, parse_object
from lazyfs.oci.manifest import MAX_LAYERS, Manifest
from lazyfs.oci.media_types import CONFIG_TYPES, layer_compression
from lazyfs.oci.platform import Platform, platform_from_fields

DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where programs are looked for if an image does not say: as all engines have it."""


class HistoryEntry(NamedTuple):
    """One step of an image's making.

    Attributes:
        created: when, as written (RFC 3339), or "".
        created_by: the command, or "".
        comment: a remark, or "".
        empty_layer: whether the step left no layer.
    """

    created: str
    created_by: str
    comment: str
    empty_layer: bool


class ImageConfig(Struct, frozen=True):
    """What an image is made of and how its process starts. Empty values mean "not said".

    Attributes:
        platform: what it runs on; parts may be "".
        diff_ids: digests of the uncompressed layers, the lowest first.
        history: how it was made.
        created: when, as written (RFC 3339).
        env: NAME=VALUE pairs.
        entrypoint: the command and its fixed arguments.
        cmd: default arguments, or the command where there is no entrypoint.
        user: user[:group], names or numbers.
        working_dir: where the process starts.
        stop_signal: the signal that ends it.
        labels: further facts, by key.
        exposed_ports: port[/protocol], sorted.
        volumes: directories meant for volumes, sorted.
    """

    platform: Platform
    diff_ids: tuple[str, ...]
    history: tuple[HistoryEntry, ...] = ()
    created: str = ""
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    user: str = ""
    working_dir: str = ""
    stop_signal: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    exposed_ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()

    def __hash__(self) -> int:  # a mapping has none
        return hash(self.diff_ids)

    @property
    def os(self) -> str:
        """The operating system."""
        return self.platform.os

    @property
    def architecture(self) -> str:
        """The processor's architecture, by Go's name."""
        return self.platform.architecture

    @property
    def variant(self) -> str:
        """The architecture's variant."""
        return self.platform.variant

    def process_facts(self) -> dict[str, Any]:
        """What concerns the image's process, for JSON."""
        names = ("env", "entrypoint", "cmd", "user", "working_dir", "stop_signal")
        return {name: getattr(self, name) for name in names}


class ImageLayer(NamedTuple):
    """A layer as its manifest and its configuration describe it.

    Attributes:
        descriptor: link to the blob.
        diff_id: digest of the uncompressed tar.
        compression: what the media type claims.
    """

    descriptor: Descriptor
    diff_id: str
    compression: Compression


def parse_config(data: bytes) -> ImageConfig:
    """The image configuration that `data` holds.

    Raises:
        FormatError: it breaks image-spec `config.md`.
        Unsupported: the image is for another system than Linux, or its digests are not sha256.
    """
    fields = parse_object(data, "image configuration")
    platform = platform_from_fields(fields)
    if platform.os not in ("", "linux"):
        raise Unsupported(f"the image is for {platform}; only images for linux can be mounted")
    process = fields.child("config")
    return ImageConfig(
        platform=platform,
        diff_ids=_diff_ids(fields.child("rootfs")),
        history=tuple(map(_history_entry, fields.children("history", 10 * MAX_LAYERS))),
        created=fields.text("created", ""),
        env=process.texts("Env"),
        entrypoint=process.texts("Entrypoint"),
        cmd=process.texts("Cmd"),
        user=process.text("User", ""),
        working_dir=process.text("WorkingDir", ""),
        stop_signal=process.text("StopSignal", ""),
        labels=process.text_map("Labels"),
        exposed_ports=process.keys("ExposedPorts"),
        volumes=process.keys("Volumes"),
    )


def _diff_ids(rootfs: Fields) -> tuple[str, ...]:
    if rootfs.text("type") != "layers":
        raise FormatError(f"{rootfs.where}: type is not 'layers'")
    return tuple(readable_digest(text) for text in rootfs.texts("diff_ids", MAX_LAYERS))


def _history_entry(fields: Fields) -> HistoryEntry:
    return HistoryEntry(
        created=fields.text("created", ""),
        created_by=fields.text("created_by", ""),
        comment=fields.text("comment", ""),
        empty_layer=fields.flag("empty_layer"),
    )


def check_is_image(manifest: Manifest) -> None:
    """Tell apart an image and the other things that registries keep in manifests.

    Raises:
        Unsupported: an artifact, a chart, a module, or an image with layers that cannot be mounted.
    """
    config = manifest.config
    if config.media_type not in CONFIG_TYPES:
        kind = manifest.artifact_type or config.media_type
        raise Unsupported(f"this is an artifact of type {kind[:100]!r}, not a container image")
    for layer in manifest.layers:
        layer_compression(layer.media_type)
        readable_digest(layer.digest)
    readable_digest(config.digest)


def image_layers(manifest: Manifest, config: ImageConfig) -> tuple[ImageLayer, ...]:
    """The layers of an image, the lowest first.

    Raises:
        FormatError: manifest and configuration disagree on their number.
        Unsupported: not an image, or one with layers that cannot be mounted.
    """
    check_is_image(manifest)
    if len(manifest.layers) != len(config.diff_ids):
        raise FormatError(
            f"the manifest has {len(manifest.layers)} layers, its config {len(config.diff_ids)} diff_ids"
        )
    return tuple(
        ImageLayer(layer, diff_id, layer_compression(layer.media_type))
        for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True)
    )


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """The chainID of each prefix of the layers (image-spec `config.md`, "Layer ChainID")."""
    chain: list[str] = []
    for diff_id in diff_ids:
        chain.append(sha256_digest(f"{chain[-1]} {diff_id}".encode()) if chain else diff_id)
    return chain
