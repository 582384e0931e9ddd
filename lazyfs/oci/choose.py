"""Which manifest of an index runs on a platform."""

from typing import Final

from indexer.errors import Unsupported
from lazyfs.errors import NotFound
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.manifest import Index
from lazyfs.oci.media_types import DOCUMENT_TYPES
from lazyfs.oci.platform import Platform, rank

MAX_NESTING: Final = 5  # indexes inside indexes
ATTESTATION_KEY: Final = "vnd.docker.reference.type"


def candidates(index: Index, platform: Platform) -> list[Descriptor]:
    """The manifests, or nested indexes, of `index` that fit `platform`, the best first, never empty.

    Entries that name a fitting platform come by preference; entries that name none come last, as only their
    configuration can tell.

    Raises:
        NotFound: none fits; the message lists what is there.
        Unsupported: nothing but Linux images can be mounted.
    """
    if platform.os != "linux":
        raise Unsupported(f"images for {platform} cannot be mounted, only those for linux")
    images = images_of(index)
    ranked = [(rank(platform, entry.platform), entry) for entry in images if entry.platform]
    fitting = sorted(
        ((place, entry) for place, entry in ranked if place is not None), key=lambda pair: pair[0]
    )
    found = [entry for _, entry in fitting] + [entry for entry in images if entry.platform is None]
    if not found:
        there = ", ".join(sorted({str(entry.platform) for entry in images})) or "nothing that can be mounted"
        raise NotFound(f"no image for {platform} in this index; it has {there[:500]}; --platform chooses")
    return found


def images_of(index: Index) -> list[Descriptor]:
    """The entries of an index that can be images, or indexes of them."""
    return [entry for entry in index.manifests if _is_image(entry)]


def _is_image(entry: Descriptor) -> bool:
    """Whether an entry can be an image: not an attestation, a signature or another artifact."""
    if entry.artifact_type or ATTESTATION_KEY in entry.annotations or entry.media_type not in DOCUMENT_TYPES:
        return False
    return entry.platform is None or (entry.platform.os, entry.platform.architecture) != (
        "unknown",
        "unknown",
    )
