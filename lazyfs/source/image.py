"""From a name's root document and a platform to one image: through indexes, to manifest and configuration."""

from collections.abc import Awaitable, Callable
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from lazyfs.errors import NotFound
from lazyfs.oci.choose import MAX_NESTING, candidates, images_of
from lazyfs.oci.config import ImageConfig, ImageLayer, check_is_image, image_layers, parse_config
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.manifest import Index, Manifest, parse_document
from lazyfs.oci.platform import Platform, rank

MAX_DOCUMENTS: Final = 64  # read while looking for a platform

ReadDocument = Callable[[Descriptor], Awaitable[bytes]]
"""Gives the checked bytes of a document, as `Source.document` does."""


class FoundImage(Struct, frozen=True):
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


Seen = Callable[[Descriptor, Manifest], None]
"""Told of a manifest, and of the link to it with its true digest, before its configuration is read."""


def nobody_sees(_link: Descriptor, _manifest: Manifest) -> None:
    """Tells nobody."""


async def find_image(
    read: ReadDocument, root: Descriptor, platform: Platform, seen: Seen = nobody_sees
) -> FoundImage:
    """The image for `platform` at or below `root`.

    An image that is not in an index is taken as it is, whatever its platform: its name asks for it.

    Args:
        read: reads documents.
        root: where to begin.
        platform: whose image.
        seen: told of its manifest, and maybe of others that were looked at before.

    Raises:
        NotFound: no image there runs on `platform`.
        FormatError, DigestMismatch, Unsupported, LimitExceeded: a document cannot be used.
        SourceError: `read` does not give it.
    """
    found = await _Search(read, platform, seen).below(root, MAX_NESTING, chosen=True)
    if found is None:
        raise NotFound(f"no image for {platform} under this name")
    return found


async def find_images(read: ReadDocument, root: Descriptor) -> list[FoundImage]:
    """The images for Linux of all platforms at or below `root`, each once.

    Raises:
        NotFound: there is none.
        FormatError, DigestMismatch, Unsupported, LimitExceeded: a document cannot be used.
        SourceError: `read` does not give it.
    """
    found: dict[str, FoundImage] = {}
    level = [root]
    for _ in range(MAX_NESTING + 1):
        below = []
        for link in level[:MAX_DOCUMENTS]:
            raw = await read(link)
            document = parse_document(raw, link.media_type)
            if isinstance(document, Index):
                below += [entry for entry in images_of(document) if _may_be_linux(entry)]
            elif link.digest not in found:
                found[link.digest] = await _image(read, link, document, raw, nobody_sees)
        level = below
    if not found:
        raise NotFound("no image for linux under this name")
    return list(found.values())


def _may_be_linux(entry: Descriptor) -> bool:
    return entry.platform is None or entry.platform.os in ("", "linux")


async def _image(
    read: ReadDocument, link: Descriptor, manifest: Manifest, raw: bytes, seen: Seen
) -> FoundImage:
    check_is_image(manifest)
    seen(link, manifest)
    raw_config = await read(manifest.config)
    config = parse_config(raw_config)
    known = replace(link, media_type=manifest.media_type, size=len(raw))
    return FoundImage(known, manifest, config, image_layers(manifest, config), raw, raw_config)


class _Search:
    """The walk through an index and those nested in it."""

    def __init__(self, read: ReadDocument, platform: Platform, seen: Seen) -> None:
        self._read = read
        self._seen = seen
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
        image = await _image(self._read, link, document, raw, self._seen)
        return image if chosen or rank(self._platform, image.config.platform) is not None else None

    async def _in_index(self, index: Index, nesting: int) -> FoundImage | None:
        if not nesting:
            raise NotFound(f"indexes are nested more than {MAX_NESTING} deep")
        for candidate in candidates(index, self._platform):
            found = await self.below(candidate, nesting - 1, chosen=candidate.platform is not None)
            if found:
                return found
        return None
