"""Manifests and indexes (image-spec `manifest.md`, `image-index.md`; Docker's schema 2 is the same shape)."""

from collections.abc import Mapping
from typing import Final

from msgspec import Struct, field

from indexer.errors import FormatError, Unsupported
from lazyfs.oci.descriptor import Descriptor, descriptor_from_fields
from lazyfs.oci.json_fields import Fields, parse_object
from lazyfs.oci.media_types import (
    DOCUMENT_TYPES,
    INDEX_TYPES,
    MANIFEST_TYPES,
    OCI_INDEX,
    OCI_MANIFEST,
    SCHEMA1_TYPES,
    essence,
)

MAX_LAYERS: Final = 1000
MAX_MANIFESTS: Final = 10_000


class Manifest(Struct, frozen=True):
    """One image, or one artifact.

    Attributes:
        media_type: which kind of manifest.
        config: link to the configuration.
        layers: links to the layers, the lowest first.
        subject: what this is attached to, if anything.
        artifact_type: what kind of artifact; "" for an image.
        annotations: further facts, by key.
    """

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    subject: Descriptor | None = None
    artifact_type: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)

    def __hash__(self) -> int:  # a mapping has none
        return hash((self.config, self.layers))


class Index(Struct, frozen=True):
    """Several manifests, or indexes of them.

    Attributes:
        media_type: which kind of index.
        manifests: links, in order.
        subject: what this is attached to, if anything.
        artifact_type: what kind of artifact; "" for an image.
        annotations: further facts, by key.
    """

    media_type: str
    manifests: tuple[Descriptor, ...]
    subject: Descriptor | None = None
    artifact_type: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)

    def __hash__(self) -> int:  # a mapping has none
        return hash(self.manifests)


def parse_document(data: bytes, media_type: str = "") -> Manifest | Index:
    """The manifest or index that `data` holds.

    Args:
        data: the exact bytes.
        media_type: what a descriptor or Content-Type said of it; "" or an unusual type leaves it to the
            document's own `mediaType`, and then to its shape.

    Raises:
        FormatError: neither, both at once, or another type than announced.
        Unsupported: Docker's schema 1, or a kind of document that is no image.
    """
    fields = parse_object(data, "manifest")
    own = fields.text("mediaType", "")
    announced = essence(media_type)
    _refuse_schema1(fields, own, announced)
    if announced in DOCUMENT_TYPES and own and own != announced:
        raise FormatError(f"manifest: announced as {announced}, but says {own[:100]!r} of itself")
    kind = own or (announced if announced in DOCUMENT_TYPES else "")
    if kind and kind not in DOCUMENT_TYPES:
        raise Unsupported(f"document of type {kind[:100]!r} is neither an image nor an index of images")
    if "manifests" in fields and ("layers" in fields or "config" in fields):
        # containerd refuses these too: two readers would see two images (CVE-2021-41190).
        raise FormatError("manifest: has both `manifests` and `layers` or `config`")
    if kind in INDEX_TYPES or (not kind and "manifests" in fields):
        return _index(fields, kind or OCI_INDEX)
    if kind in MANIFEST_TYPES or "config" in fields:
        return _manifest(fields, kind or OCI_MANIFEST)
    raise FormatError("manifest: neither an image manifest nor an index")


def parse_manifest(data: bytes, media_type: str = "") -> Manifest:
    """Like `parse_document`, where it must be a manifest."""
    document = parse_document(data, media_type)
    if isinstance(document, Index):
        raise FormatError("an image index stands where an image manifest should")
    return document


def parse_index(data: bytes, media_type: str = "") -> Index:
    """Like `parse_document`, where it must be an index."""
    document = parse_document(data, media_type)
    if isinstance(document, Manifest):
        raise FormatError("an image manifest stands where an image index should")
    return document


def _refuse_schema1(fields: Fields, own: str, announced: str) -> None:
    version = fields.number("schemaVersion")
    if version == 1 or {own, announced} & SCHEMA1_TYPES:
        raise Unsupported("Docker image manifest of schema 1, obsolete since 2017; push the image again")
    if version != 2:
        raise FormatError(f"manifest: schemaVersion {version} is not 2")


def _manifest(fields: Fields, media_type: str) -> Manifest:
    if "config" not in fields:
        raise FormatError("manifest: 'config' is missing")
    return Manifest(
        media_type=media_type,
        config=descriptor_from_fields(fields.child("config")),
        layers=tuple(map(descriptor_from_fields, fields.children("layers", MAX_LAYERS))),
        subject=_subject(fields),
        artifact_type=fields.text("artifactType", ""),
        annotations=fields.text_map("annotations"),
    )


def _index(fields: Fields, media_type: str) -> Index:
    return Index(
        media_type=media_type,
        manifests=tuple(map(descriptor_from_fields, fields.children("manifests", MAX_MANIFESTS))),
        subject=_subject(fields),
        artifact_type=fields.text("artifactType", ""),
        annotations=fields.text_map("annotations"),
    )


def _subject(fields: Fields) -> Descriptor | None:
    return descriptor_from_fields(fields.child("subject")) if "subject" in fields else None
