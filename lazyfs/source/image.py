"""From a source and a platform to one image: through indexes, to its manifest and configuration."""

from dataclasses import dataclass

from lazyfs.errors import NotFound
from lazyfs.oci.choose import MAX_NESTING, candidates
from lazyfs.oci.config import ImageConfig, ImageLayer, check_is_image, image_layers, parse_config
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.manifest import Index, Manifest, parse_document
from lazyfs.oci.platform import Platform, rank
from lazyfs.source.base import Source

MAX_DOCUMENTS = 64  # read while looking for a platform


@dataclass(frozen=True, slots=True)
class ImageDocuments:
    """One image, as its documents describe it.

    Attributes:
        root: what the name stands for: the manifest, or the index it was found in.
        descriptor: link to the manifest, with its true type and size.
        manifest: the manifest.
        config: its configuration.
        layers: its layers, the lowest first.
    """

    root: Descriptor
    descriptor: Descriptor
    manifest: Manifest
    config: ImageConfig
    layers: tuple[ImageLayer, ...]


async def read_image(source: Source, platform: Platform) -> ImageDocuments:
    """The image that a source's name stands for on `platform`.

    An image that is not in an index is taken as it is, whatever its platform: its name asks for it.

    Raises:
        NotFound: no image there runs on `platform`.
        FormatError, DigestMismatch, Unsupported, LimitExceeded: a document cannot be used.
        SourceError: the source does not give it.
    """
    root = await source.resolve()
    search = _Search(source, platform)
    found = await search.below(root, MAX_NESTING, chosen=True)
    if found is None:
        raise NotFound(f"no image for {platform} under this name")
    descriptor, manifest, config = found
    return ImageDocuments(root, descriptor, manifest, config, image_layers(manifest, config))


class _Search:
    """The walk through an index and those nested in it."""

    def __init__(self, source: Source, platform: Platform) -> None:
        self._source = source
        self._platform = platform
        self._documents_left = MAX_DOCUMENTS

    async def below(
        self, descriptor: Descriptor, nesting: int, *, chosen: bool
    ) -> tuple[Descriptor, Manifest, ImageConfig] | None:
        """The image that a descriptor leads to; None if it was not `chosen` by platform and has another."""
        if not self._documents_left:
            raise NotFound(f"no image for {self._platform} among the first {MAX_DOCUMENTS} documents")
        self._documents_left -= 1
        data = await self._source.document(descriptor)
        document = parse_document(data, descriptor.media_type)
        if isinstance(document, Index):
            return await self._in_index(document, nesting)
        check_is_image(document)
        config = parse_config(await self._source.document(document.config))
        if not chosen and rank(self._platform, config.platform) is None:
            return None
        link = Descriptor(document.media_type, descriptor.digest, len(data), platform=descriptor.platform)
        return link, document, config

    async def _in_index(self, index: Index, nesting: int) -> tuple[Descriptor, Manifest, ImageConfig] | None:
        if not nesting:
            raise NotFound(f"indexes are nested more than {MAX_NESTING} deep")
        for candidate in candidates(index, self._platform):
            chosen = candidate.platform is not None
            found = await self.below(candidate, nesting - 1, chosen=chosen)
            if found:
                return found
        return None
