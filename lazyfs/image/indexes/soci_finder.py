"""Finds the SOCI index of an image: named by its manifest, or attached to it."""

import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Final

from indexer.errors import IndexerError
from lazyfs.cache.cache import Cache
from lazyfs.errors import CacheError, LazyfsError, NotFound
from lazyfs.image.indexes.soci_index import V1_TYPE, named_index, parse_index
from lazyfs.image.resolve import ResolvedImage, document_of
from lazyfs.oci.descriptor import UNKNOWN_SIZE, Descriptor
from lazyfs.oci.media_types import OCI_MANIFEST
from lazyfs.source.attachments import Attachments
from lazyfs.source.base import Source

_log = logging.getLogger(__name__)

MAX_CANDIDATES: Final = 4
"""Attached SOCI indexes that are looked at."""

Ztocs = Mapping[str, Descriptor]
"""Links to zTOCs by layer digest."""


class SociFinder:
    """Finds links to zTOCs, and remembers what it found. Its methods log what stands in the way.

    Args:
        cache: where indexes are kept and remembered.
        source: the image's repository.
        attachments: the same, asked for what refers to the image; None where nothing can.
        offline: ask nobody.
    """

    def __init__(
        self, cache: Cache, source: Source, attachments: Attachments | None, *, offline: bool = False
    ) -> None:
        self._document = partial(document_of, source, cache.documents, offline=offline)
        self._references = cache.references
        self._attachments = attachments
        self._offline = offline

    async def named(self, resolved: ResolvedImage) -> Ztocs:
        """The zTOCs of the index that the manifest names, version 2; empty if it names none."""
        try:
            digest = named_index(resolved.manifest)
            if digest is None:
                return {}
            link = Descriptor(OCI_MANIFEST, digest, UNKNOWN_SIZE)
            return parse_index(await self._document(link), subject=None)
        except (IndexerError, LazyfsError) as error:
            _log.warning("the SOCI index of %s is passed by: %s", resolved.name, error)
        return {}

    async def attached(self, resolved: ResolvedImage) -> Ztocs:
        """The zTOCs of the attached index, version 1, that has most of them; empty if there is none."""
        best: tuple[Descriptor, Ztocs] | None = None
        try:
            remembered = self._remembered(resolved)
            if remembered is not None:
                with suppress(NotFound):
                    return parse_index(await self._document(remembered), resolved.descriptor.digest)
                self.forget(resolved)
            links = await self._candidates(resolved)
        except (IndexerError, LazyfsError) as error:
            _log.warning("no SOCI index of %s is looked for: %s", resolved.name, error)
            return {}
        for link in links:
            try:
                ztocs = parse_index(await self._document(link), resolved.descriptor.digest)
            except (IndexerError, LazyfsError) as error:
                _log.warning("SOCI index %s is passed by: %s", link.digest, error)
                continue
            if best is None or len(ztocs) > len(best[1]):
                best = link, ztocs
        if best is None:
            return {}
        self._remember(resolved, best[0])
        return best[1]

    async def _candidates(self, resolved: ResolvedImage) -> list[Descriptor]:
        if self._offline or self._attachments is None:
            return []
        found = await self._attachments.referrers(resolved.descriptor.digest, V1_TYPE)
        return list(found)[: -MAX_CANDIDATES - 1 : -1]  # those that were added last

    def _key(self, resolved: ResolvedImage) -> str:
        return f"soci {resolved.repository} {resolved.descriptor.digest}"

    def _remember(self, resolved: ResolvedImage, link: Descriptor) -> None:
        with suppress(CacheError):
            facts = {"digest": link.digest, "size": link.size}
            self._references.remember(self._key(resolved), facts, time.time())

    def forget(self, resolved: ResolvedImage) -> None:
        """What is remembered has gone: `attached` looks anew."""
        with suppress(CacheError):
            self._references.forget(self._key(resolved))

    def _remembered(self, resolved: ResolvedImage) -> Descriptor | None:
        found = self._references.recall(self._key(resolved))
        match found.descriptor if found else None:
            case {"digest": str(digest), "size": int(size)}:
                return Descriptor(OCI_MANIFEST, digest, size)
        return None
