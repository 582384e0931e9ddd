"""Boot packs as OCI artifacts (docs/boot-packs.md): one manifest that refers to the image, with one blob.

Of several packs of an image the one with the highest generation counts: whoever adds to a pack publishes the
whole of it under the next number.
"""

import json
from collections.abc import Sequence
from typing import Final

from indexer.digest import sha256_digest
from indexer.errors import FormatError, LimitExceeded
from lazyfs.oci.descriptor import Descriptor, readable_digest
from lazyfs.oci.manifest import parse_manifest
from lazyfs.oci.media_types import OCI_EMPTY, OCI_MANIFEST
from lazyfs.source.push_artifact import Artifact, descriptor_fields

BOOT_TYPE: Final = "application/vnd.lazyfs.boot-pack.v1+json"
PACK_TYPE: Final = "application/vnd.lazyfs.boot-pack.v1"
GENERATION_KEY: Final = "vnd.lazyfs.boot-pack.generation"

MAX_PACK: Final = 1 << 30

_EMPTY: Final = b"{}"


def build_pack_artifact(subject: Descriptor, pack: bytes, generation: int) -> Artifact:
    """The artifact of a pack.

    Args:
        subject: link to the image's manifest.
        pack: its bytes.
        generation: one more than that of the pack it adds to; 1 for the first.
    """
    config = Descriptor(OCI_EMPTY, sha256_digest(_EMPTY), len(_EMPTY))
    blob = Descriptor(PACK_TYPE, sha256_digest(pack), len(pack))
    annotations = {GENERATION_KEY: str(generation)}
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": BOOT_TYPE,
        "config": descriptor_fields(config) | {"data": "e30="},
        "layers": [descriptor_fields(blob)],
        "subject": descriptor_fields(subject),
        "annotations": annotations,
    }
    data = json.dumps(manifest, separators=(",", ":")).encode()
    link = Descriptor(
        OCI_MANIFEST, sha256_digest(data), len(data), artifact_type=BOOT_TYPE, annotations=annotations
    )
    return Artifact(data, link, subject.digest, ((config, _EMPTY), (blob, pack)))


def parse_pack_artifact(data: bytes, subject: str) -> Descriptor:
    """Link to the pack of an artifact.

    Args:
        data: the manifest's bytes.
        subject: digest of the image's manifest.

    Raises:
        FormatError: it is no boot pack, or that of another image.
        Unsupported: its digest cannot be checked.
        LimitExceeded: the pack is too large.
    """
    manifest = parse_manifest(data, OCI_MANIFEST)
    if manifest.artifact_type != BOOT_TYPE:
        raise FormatError(f"artifact of type {manifest.artifact_type[:100]!r} where a boot pack should be")
    if manifest.subject is None or manifest.subject.digest != subject:
        raise FormatError("boot pack of another image")
    packs = [link for link in manifest.layers if link.media_type == PACK_TYPE]
    if len(packs) != 1:
        raise FormatError(f"artifact with {len(packs)} boot packs")
    readable_digest(packs[0].digest)
    if packs[0].size > MAX_PACK:
        raise LimitExceeded(f"boot pack of {packs[0].size} bytes, more than {MAX_PACK}")
    return packs[0]


def generation_of(link: Descriptor) -> int:
    """The generation that a link to an artifact tells; 0 if it tells none."""
    told = link.annotations.get(GENERATION_KEY, "")
    return int(told) if told.isascii() and told.isdigit() and len(told) < 10 else 0


def newest_first(links: Sequence[Descriptor]) -> list[Descriptor]:
    """Links to packs, the highest generation first; of one generation, the one added last."""
    found = sorted(links, key=generation_of)
    found.reverse()
    return found
