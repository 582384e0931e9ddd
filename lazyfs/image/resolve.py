"""From an image's name to its manifest, configuration and layers."""

import logging
import time
from functools import partial
from typing import Any, Final

import trio
from msgspec import Struct

from indexer.errors import IndexerError
from lazyfs.cache.documents import Documents
from lazyfs.cache.references import References
from lazyfs.errors import CacheError, NotFound, Unauthorized, Unreachable
from lazyfs.oci.config import ImageConfig, ImageLayer
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.image_name import ImageName, RegistryImage, repository_of
from lazyfs.oci.manifest import Manifest
from lazyfs.oci.platform import Platform
from lazyfs.source.base import Source
from lazyfs.source.image import FoundImage, Seen, find_image, find_images, nobody_sees

_log = logging.getLogger(__name__)

PATIENCE_S: Final = 3.0
"""How long a registry is waited for where we know what its tag was."""


class ResolvedImage(Struct, frozen=True):
    """One platform's image.

    Attributes:
        name: what was asked for, in canonical form.
        repository: where it is, as `repository_of` says.
        root: what the name stands for: the manifest, or an index that leads to it.
        descriptor: of the manifest, with its true type and size.
        manifest: the manifest.
        config: the configuration.
        layers: the layers, the lowest first.
        raw_manifest: the manifest's exact bytes.
        raw_config: the configuration's exact bytes.
    """

    name: str
    repository: str
    root: Descriptor
    descriptor: Descriptor
    manifest: Manifest
    config: ImageConfig
    layers: tuple[ImageLayer, ...]
    raw_manifest: bytes
    raw_config: bytes


class Resolver:
    """Resolves names through a source, remembering what it learns.

    Args:
        source: where the image is.
        documents: keeps manifests and configurations.
        references: remembers what tags named.
        offline: ask no source; use what is remembered.
    """

    def __init__(
        self, source: Source, documents: Documents, references: References, *, offline: bool = False
    ) -> None:
        self._source = source
        self._document = partial(document_of, source, documents, offline=offline)
        self._references = references
        self._offline = offline

    async def resolve(self, name: ImageName, platform: Platform, seen: Seen = nobody_sees) -> ResolvedImage:
        """The image of this name for this platform.

        Args:
            name: the image's.
            platform: which.
            seen: told of its manifest before its configuration is read.

        Raises:
            IndexerError: a document is damaged, or this is no image that can be mounted.
            LazyfsError: the source does not give it.
        """
        root = await self._named(name)
        return _resolved(name, root, await find_image(self._document, root, platform, seen))

    async def resolve_all(self, name: ImageName) -> list[ResolvedImage]:
        """The images of this name for all platforms; errors as for `resolve`."""
        root = await self._named(name)
        return [_resolved(name, root, found) for found in await find_images(self._document, root)]

    async def _named(self, name: ImageName) -> Descriptor:
        if not isinstance(name, RegistryImage):
            return await self._source.resolve()
        key = str(name)
        known = self._recalled(key)
        if self._offline:
            if known is None:
                raise NotFound(f"{key} is not known here yet; name it once while its registry is up")
            return known
        if known is None:
            descriptor = await self._source.resolve()
        else:
            try:
                with trio.fail_after(PATIENCE_S):
                    descriptor = await self._source.resolve(patient=False)
            except Unauthorized as error:
                hint = f"{error}; what is here of it can be used with --offline"
                raise Unauthorized(hint, url=error.url, status=error.status) from error
            except (Unreachable, trio.TooSlowError) as error:
                why = str(error) or f"its registry gave no answer within {PATIENCE_S:g} s"
                _log.warning("going on with what %s was when last seen: %s", key, why)
                return known
        self._remember(key, descriptor)
        return descriptor

    def _remember(self, key: str, descriptor: Descriptor) -> None:
        facts = {"mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size}
        known = self._references.recall(key)
        if known is not None and known.descriptor == facts:
            return
        try:
            self._references.remember(key, facts, time.time())
        except CacheError as error:
            _log.warning("%s", error)

    def _recalled(self, key: str) -> Descriptor | None:
        """What a tag named when its registry was last asked; None if that is not known here."""
        resolved = self._references.recall(key)
        return None if resolved is None else _descriptor(resolved.descriptor)


async def document_of(source: Source, documents: Documents, link: Descriptor, *, offline: bool) -> bytes:
    """A document that is kept, else fetched, unless `offline`, and kept; errors as for `Resolver.resolve`."""
    data = documents.get(link.digest)
    if data is not None:
        return data
    if offline:
        raise NotFound(f"{link.digest} is not in the cache; try without --offline")
    data = await source.document(link)
    try:
        documents.put(link.digest, data)
    except CacheError as error:
        _log.warning("%s", error)
    return data


def _resolved(name: ImageName, root: Descriptor, found: FoundImage) -> ResolvedImage:
    return ResolvedImage(
        name=str(name),
        repository=repository_of(name),
        root=root,
        descriptor=found.descriptor,
        manifest=found.manifest,
        config=found.config,
        layers=found.layers,
        raw_manifest=found.raw_manifest,
        raw_config=found.raw_config,
    )


def _descriptor(facts: dict[str, Any]) -> Descriptor | None:
    """The descriptor that was remembered; None if that is damaged."""
    try:
        return Descriptor(
            media_type=str(facts["mediaType"]), digest=str(facts["digest"]), size=int(facts["size"])
        )
    except (KeyError, TypeError, ValueError, IndexerError):
        return None
