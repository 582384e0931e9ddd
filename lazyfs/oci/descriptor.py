"""Descriptors: the typed, sized, digested links between documents (image-spec `descriptor.md`)."""

import re
from collections.abc import Mapping
from typing import Final

from msgspec import Struct, field

from indexer.digest import digest_hex
from indexer.errors import FormatError, Unsupported
from lazyfs.oci.json_fields import Fields
from lazyfs.oci.media_types import INDEX_TYPES
from lazyfs.oci.platform import Platform, platform_from_fields

UNKNOWN_SIZE: Final = -1  # a digest reference knows no size; the digest alone decides
MAX_DIGEST_LENGTH: Final = 256
MAX_URLS: Final = 32

_DIGEST = re.compile(r"[a-z0-9]+(?:[+._-][a-z0-9]+)*:[a-zA-Z0-9=_-]+", re.ASCII)
_REGISTERED = {
    "sha256": re.compile(r"[0-9a-f]{64}", re.ASCII),
    "sha512": re.compile(r"[0-9a-f]{128}", re.ASCII),
}


class Descriptor(Struct, frozen=True):
    """A link to content.

    Attributes:
        media_type: what the content is; "" where only its digest is known.
        digest: what the content hashes to, "algorithm:encoded".
        size: bytes of the content, or UNKNOWN_SIZE.
        urls: other places to fetch it from.
        annotations: further facts, by key.
        platform: for a manifest in an index, what it runs on.
        artifact_type: what kind of artifact, where this links to one; else "".
    """

    media_type: str
    digest: str
    size: int
    urls: tuple[str, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)
    platform: Platform | None = None
    artifact_type: str = ""

    def __hash__(self) -> int:  # a mapping has none
        return hash(self.digest)

    @property
    def is_index(self) -> bool:
        """Whether this links to an image index or manifest list."""
        return self.media_type in INDEX_TYPES


def checked_digest(text: str, where: str) -> str:
    """`text`, a digest by the grammar of image-spec `descriptor.md`.

    Raises:
        FormatError: it is none.
    """
    if len(text) > MAX_DIGEST_LENGTH or not _DIGEST.fullmatch(text):
        raise FormatError(f"{where}: not a digest: {text[:100]!r}")
    algorithm, encoded = text.split(":", 1)
    shape = _REGISTERED.get(algorithm)
    if shape and not shape.fullmatch(encoded):
        raise FormatError(f"{where}: not a {algorithm} digest: {text[:150]!r}")
    return text


def readable_digest(digest: str) -> str:
    """`digest`, if it is one this program can check: sha256.

    Raises:
        Unsupported: another algorithm.
        FormatError: not a digest.
    """
    algorithm = checked_digest(digest, "digest").partition(":")[0]
    if algorithm != "sha256":
        raise Unsupported(f"digests of algorithm {algorithm!r} cannot be checked, only sha256")
    digest_hex(digest)
    return digest


def descriptor_from_fields(fields: Fields) -> Descriptor:
    """The descriptor that a JSON object holds.

    Raises:
        FormatError: a field is missing, of the wrong type or out of range.
    """
    return Descriptor(
        media_type=fields.text("mediaType"),
        digest=checked_digest(fields.text("digest"), fields.where),
        size=fields.number("size"),
        urls=fields.texts("urls", MAX_URLS),
        annotations=fields.text_map("annotations"),
        platform=platform_from_fields(fields.child("platform")) if "platform" in fields else None,
        artifact_type=fields.text("artifactType", ""),
    )
