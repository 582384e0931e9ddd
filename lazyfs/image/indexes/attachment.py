"""Manifests of artifacts that are attached to an image: without configuration, with a subject.

OCI image-spec v1.1, manifest.md, "Guidelines for Artifact Usage".
"""

import json
from collections.abc import Mapping, Sequence
from typing import Final

from indexer.digest import sha256_digest
from indexer.errors import FormatError
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.manifest import Manifest, parse_manifest
from lazyfs.oci.media_types import OCI_EMPTY, OCI_MANIFEST
from lazyfs.source.push.artifact import Artifact, descriptor_fields

_EMPTY: Final = b"{}"
_EMPTY_BASE64: Final = "e30="


def build_attachment(
    artifact_type: str,
    subject: Descriptor,
    blobs: Sequence[tuple[Descriptor, bytes | memoryview]],
    annotations: Mapping[str, str] | None = None,
) -> Artifact:
    """An artifact that refers to an image.

    Args:
        artifact_type: what kind of artifact it is.
        subject: link to the image's manifest, with its type and size. What else it says of the place where
            it was found is left out: the same content is the same artifact.
        blobs: links to its layers, and their bytes.
        annotations: of the manifest, and of links to it.
    """
    config = Descriptor(OCI_EMPTY, sha256_digest(_EMPTY), len(_EMPTY))
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": artifact_type,
        "config": descriptor_fields(config) | {"data": _EMPTY_BASE64},
        "layers": [descriptor_fields(link) for link, _ in blobs],
        "subject": descriptor_fields(Descriptor(subject.media_type, subject.digest, subject.size)),
    }
    if annotations:
        manifest["annotations"] = dict(annotations)
    data = json.dumps(manifest, separators=(",", ":")).encode()
    link = Descriptor(
        OCI_MANIFEST,
        sha256_digest(data),
        len(data),
        artifact_type=artifact_type,
        annotations=dict(annotations or {}),
    )
    return Artifact(data, link, subject.digest, ((config, _EMPTY), *blobs))


def parse_attachment(data: bytes, artifact_type: str, subject: str, what: str) -> Manifest:
    """An artifact's manifest, which is of this type and refers to this image.

    Args:
        data: the manifest's bytes.
        artifact_type: what kind of artifact it must be.
        subject: digest of the image's manifest.
        what: the kind's name, for messages.

    Raises:
        FormatError: it makes no sense, is of another type, or of another image.
    """
    manifest = parse_manifest(data, OCI_MANIFEST)
    if manifest.artifact_type != artifact_type:
        raise FormatError(f"artifact of type {manifest.artifact_type[:100]!r} in the place of {what}")
    if manifest.subject is None or manifest.subject.digest != subject:
        raise FormatError(f"{what} of another image")
    return manifest
