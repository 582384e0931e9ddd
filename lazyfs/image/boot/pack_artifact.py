"""Boot packs as OCI artifacts (docs/boot-packs.md): one manifest that refers to the image, with one blob.

Of several packs of an image the one with the highest generation counts: whoever adds to a pack publishes the
whole of it under the next number.
"""

from collections.abc import Sequence
from typing import Final

from indexer.digest import sha256_digest
from indexer.errors import FormatError, LimitExceeded
from lazyfs.image.indexes.attachment import build_attachment, parse_attachment
from lazyfs.oci.descriptor import Descriptor, readable_digest
from lazyfs.source.push.artifact import Artifact

BOOT_TYPE: Final = "application/vnd.lazyfs.boot-pack.v1+json"
PACK_TYPE: Final = "application/vnd.lazyfs.boot-pack.v1"
GENERATION_KEY: Final = "vnd.lazyfs.boot-pack.generation"

MAX_PACK: Final = 1 << 30


def build_pack_artifact(subject: Descriptor, pack: bytes, generation: int) -> Artifact:
    """The artifact of a pack.

    Args:
        subject: link to the image's manifest.
        pack: its bytes.
        generation: one more than that of the pack it adds to; 1 for the first.
    """
    blob = Descriptor(PACK_TYPE, sha256_digest(pack), len(pack))
    return build_attachment(BOOT_TYPE, subject, [(blob, pack)], {GENERATION_KEY: str(generation)})


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
    manifest = parse_attachment(data, BOOT_TYPE, subject, "boot pack")
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
