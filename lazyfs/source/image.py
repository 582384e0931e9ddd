"""From a name's root document and a platform to one image: through indexes, to manifest and configuration."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final

from lazyfs.errors import NotFound
from lazyfs.oci.choose import MAX_NESTING, candidates
from lazyfs.oci.config import ImageConfig, ImageLayer, check_is_image, image_layers, parse_config
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.manifest import Index, Manifest, parse_document
from lazyfs.oci.platform import Platform, rank

MAX_DOCUMENTS: Final = 64  # read while looking for a platform

ReadDocument = Callable[[Descriptor], Awaitable[bytes]]
"""Gives the checked bytes of a document, as `Source.document` does."""


@dataclass(frozen=True, slots=True)
class FoundImage:
    """One image, as its documents describe it.

    Attributes:
        descriptor: link to the manifest, with its true type and size.
        manifest: the manifest.
        config: its configuration.
        layers: its layers, the lowest first.
        raw_manifest: the manifest's exact bytes.
        raw_config: the configuration's exact bytes.
    """

    descriptor: Descriptor
    manifest: Manifest
    config: ImageConfig
    layers: tuple[ImageLayer, ...]
    raw_manifest: bytes
    raw_config: bytes


async def find_image(read: ReadDocument, root: Descriptor, platform: Platform) -> FoundImage:
    """The image for `platform` at or below `root`.

    An image that is not in an index is taken as it is, whatever its platform: its name asks for it.

    Raises:
        NotFound: no image there runs on `platform`.
        FormatError, DigestMismatch, Unsupported, LimitExceeded: a document cannot be used.
        SourceError: `read` does not give it.
    """
    found = await _Search(read, platform).below(root, MAX_NESTING, chosen=True)
    if found is None:
        raise NotFound(f"no image for {platform} under this name")
    return found


class _Search:
    """The walk through an index and those nested in it."""

    def __init__(self, read: ReadDocument, platform: Platform) -> None:
        self._read = read
        self._platform = platform
        self._documents_left = MAX_DOCUMENTS

    async def below(self, link: Descriptor, nesting: int, *, chosen: bool) -> FoundImage | None:
        """The image that a descriptor leads to; None if it was not `chosen` by platform and has another."""
        if not self._documents_left:
            raise NotFound(f"no image for {self._platform} among the first {MAX_DOCUMENTS} documents")
        self._documents_left -= 1
        raw = await self._read(link)
        document = parse_document(raw, link.media_type)
        if isinstance(document, Index):
            return await self._in_index(document, nesting)
        check_is_image(document)
        raw_config = await self._read(document.config)
        config = parse_config(raw_config)
        if not chosen and rank(self._platform, config.platform) is None:
            return None
        known = replace(link, media_type=document.media_type, size=len(raw))
        return FoundImage(known, document, config, image_layers(document, config), raw, raw_config)

    async def _in_index(self, index: Index, nesting: int) -> FoundImage | None:
        if not nesting:
            raise NotFound(f"indexes are nested more than {MAX_NESTING} deep")
        for candidate in candidates(index, self._platform):
            found = await self.below(candidate, nesting - 1, chosen=candidate.platform is not None)
            if found:
                return found
        return None
