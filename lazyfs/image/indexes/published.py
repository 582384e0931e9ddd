"""Indexes that others published: found beside images, judged by `trust`, kept in the cache.

Heads are fetched whole, they are small; windows as spans need them (`windows`). What was found once for an
image is remembered under the demands it met then, so that the next mount asks nobody.
"""

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

import trio
from msgspec.structs import replace

from indexer.errors import IndexerError, LimitExceeded
from lazyfs.cache.cache import Cache
from lazyfs.errors import CacheError, LazyfsError, NotFound
from lazyfs.image.indexes.artifact import (
    INDEX_TYPE,
    MAX_HEAD,
    LayerIndex,
    check_head,
    check_windows,
    parse_artifact,
)
from lazyfs.image.indexes.indexing import IndexedLayer
from lazyfs.image.indexes.kept import KeptTocs
from lazyfs.image.resolve import ResolvedImage
from lazyfs.image.tasks import open_tasks, run_all
from lazyfs.image.trust.candidates import Place, counted, may_count
from lazyfs.image.trust.demands import Demands, IndexTrust
from lazyfs.oci.config import ImageLayer
from lazyfs.oci.descriptor import Descriptor
from lazyfs.source.attachments import Attachments

_log = logging.getLogger(__name__)

MAX_CANDIDATES: Final = 8

_PREPARED: Final = 4  # connections: heads of tables and the boot pack are asked for at once

_FLOOR: Final = 1 << 20  # bytes of a head, or of windows, that any layer may have


class PublishedIndexes:
    """An `gathering.IndexFinder` of indexes that were not made here.

    Args:
        cache: where they are kept.
        places: where to look, in order.
        demands: what is demanded of them.
        offline: ask nobody.
    """

    def __init__(
        self, cache: Cache, places: Sequence[Place], demands: Demands, *, offline: bool = False
    ) -> None:
        self._references = cache.references
        self._quarantine = cache.quarantine
        self._tocs = KeptTocs(cache)
        self._places = {place.name: place for place in places}
        self._demands = demands
        self._offline = offline

    async def find(self, resolved: ResolvedImage, wanted: Collection[str]) -> Mapping[str, IndexedLayer]:
        """As IndexFinder.find says: first what was audited here, then what was found before, then others."""
        layers = {layer.descriptor.digest: layer for layer in resolved.layers}
        missing = {digest: layers[digest] for digest in layers if digest in wanted}
        found = await trio.to_thread.run_sync(self._kept, resolved, missing)
        if not self._offline and len(found) < len(missing):
            fresh = await self._look(resolved, {d: layer for d, layer in missing.items() if d not in found})
            if fresh:
                await trio.to_thread.run_sync(self._remember, resolved, fresh)
            found |= {digest: indexed for digest, (_, indexed) in fresh.items()}
        return {digest: self._heedful(resolved, indexed) for digest, indexed in found.items()}

    def _heedful(self, resolved: ResolvedImage, indexed: IndexedLayer) -> IndexedLayer:
        """An index that is looked for anew by the next mount if its windows are gone."""
        remote = indexed.remote_windows
        if remote is None:
            return indexed
        return replace(indexed, remote_windows=replace(remote, gone=partial(self._forget, resolved)))

    async def foresee(self, repository: str, manifest: str) -> None:
        """Ask already what is attached to an image, if nothing is remembered of that.

        Args:
            repository: the image's.
            manifest: digest of its manifest.
        """
        place = next((place for place in self._places.values() if may_count(place, self._demands)), None)
        if (
            self._offline
            or place is None
            or self._references.recall(self._key(repository, manifest)) is not None
        ):
            return
        async with open_tasks() as nursery:
            nursery.start_soon(place.attachments.prepare, _PREPARED)
            with suppress(LazyfsError, IndexerError):  # who wants to know is told
                await place.attachments.referrers(manifest, INDEX_TYPE)

    # What is here

    def _kept(self, resolved: ResolvedImage, layers: Mapping[str, ImageLayer]) -> dict[str, IndexedLayer]:
        found = {}
        try:
            remembered = self._references.recall(self._key_of(resolved))
            tocs = remembered.descriptor if remembered else {}
            for digest, layer in layers.items():
                record = tocs.get(digest)
                audited = self._tocs.audited(layer, self._windows_of(record))
                indexed = audited or self._remembered(layer, record)
                if indexed is not None:
                    found[digest] = indexed
        except CacheError as error:
            _log.warning("%s", error)
        return found

    def _windows_of(self, record: object) -> Attachments | None:
        """Where windows of an index may be that was found before, maybe for another image."""
        match record:
            case [str(place_name), *_] if place_name in self._places:
                return self._places[place_name].attachments
        return next((place.attachments for place in self._places.values()), None)

    def _remembered(self, layer: ImageLayer, record: object) -> IndexedLayer | None:
        """An index that was found for this image before."""
        match record:
            case [str(place_name), str(toc_digest)] if place_name in self._places:
                head = self._tocs.load(layer, toc_digest)
                return self._tocs.indexed(head, self._places[place_name].attachments) if head else None
        return None

    def _key_of(self, resolved: ResolvedImage) -> str:
        return self._key(resolved.repository, resolved.descriptor.digest)

    def _key(self, repository: str, manifest: str) -> str:
        return f"index {self._demands.fingerprint} {repository} {manifest}"

    def _remember(self, resolved: ResolvedImage, fresh: Mapping[str, tuple[Place, IndexedLayer]]) -> None:
        try:
            before = self._references.recall(self._key_of(resolved))
            tocs = {digest: [place.name, indexed.head.digest] for digest, (place, indexed) in fresh.items()}
            kept = (before.descriptor if before else {}) | tocs
            self._references.remember(self._key_of(resolved), kept, time.time())
        except CacheError as error:
            _log.warning("%s", error)

    def _forget(self, resolved: ResolvedImage) -> None:
        try:
            self._references.forget(self._key_of(resolved))
        except CacheError as error:
            _log.warning("%s", error)

    # What is elsewhere

    async def _look(
        self, resolved: ResolvedImage, layers: Mapping[str, ImageLayer]
    ) -> dict[str, tuple[Place, IndexedLayer]]:
        found: dict[str, tuple[Place, IndexedLayer]] = {}
        for place in self._places.values():
            missing = {digest: layer for digest, layer in layers.items() if digest not in found}
            if not missing:
                break
            if not may_count(place, self._demands):
                await self._tell_of_unused(place, resolved)
                continue
            try:
                for link in await self._candidates(place, resolved.descriptor.digest):
                    found |= await self._from_artifact(place, link, resolved, missing)
                    missing = {digest: layer for digest, layer in missing.items() if digest not in found}
                    if not missing:
                        break
            except (LazyfsError, IndexerError) as error:
                _log.warning("indexes in %s are passed by: %s", place.name, error)
        return found

    async def _tell_of_unused(self, place: Place, resolved: ResolvedImage) -> None:
        """Say that an index is there, where it is no rule of the policy that keeps it from sparing a pull."""
        if self._demands.indexes is not IndexTrust.TABLE:
            _log.info("no index is looked for in %s: none would count", place.name)
            return
        with suppress(LazyfsError, IndexerError):  # it would not be used anyway
            if await place.attachments.referrers(resolved.descriptor.digest, INDEX_TYPE):
                _log.warning(
                    "the index in %s is not used: the image is named by its digest, and no trusted key signed"
                    " the index; --trust-index uses it all the same",
                    place.name,
                )

    async def _candidates(self, place: Place, digest: str) -> list[Descriptor]:
        """Links to indexes that count: signed ones first, then those that were added last."""
        links = list(await place.attachments.referrers(digest, INDEX_TYPE))[: -MAX_CANDIDATES - 1 : -1]
        return await counted(place, links, self._demands, "index")

    async def _from_artifact(
        self, place: Place, link: Descriptor, resolved: ResolvedImage, layers: Mapping[str, ImageLayer]
    ) -> dict[str, tuple[Place, IndexedLayer]]:
        found = {}

        async def fetch(index: LayerIndex, layer: ImageLayer) -> None:
            try:
                indexed = await self._fetch_head(place, index, layer)
            except (IndexerError, NotFound) as error:
                _log.warning("index %s in %s: %s", link.digest, place.name, error)
                return
            if indexed is not None:
                found[layer.descriptor.digest] = (place, indexed)

        try:
            indexes = parse_artifact(await place.attachments.document(link), resolved.descriptor.digest)
        except (IndexerError, NotFound) as error:  # a list may be longer than what is there
            _log.warning("index %s in %s cannot be used: %s", link.digest, place.name, error)
            return {}
        await run_all(partial(fetch, indexes[d], layer) for d, layer in layers.items() if d in indexes)
        return found

    async def _fetch_head(self, place: Place, index: LayerIndex, layer: ImageLayer) -> IndexedLayer | None:
        descriptor = layer.descriptor
        note = self._quarantine.find(descriptor.digest, index.head.digest)
        if note is not None:
            _log.warning("index %s is not used: it lied about layer %s", index.head.digest, descriptor.digest)
            return None
        for what, link in (("head", index.head), ("windows", index.windows)):
            if link is not None and link.size > max(_FLOOR, descriptor.size):
                raise LimitExceeded(f"{what} of {link.size} bytes for a layer of {descriptor.size}")
        here = await trio.to_thread.run_sync(self._here, place, index, layer)
        if here is not None:
            return here
        data = await place.attachments.document(index.head, MAX_HEAD)
        return await trio.to_thread.run_sync(self._take_in, place, index, layer, data)

    def _here(self, place: Place, index: LayerIndex, layer: ImageLayer) -> IndexedLayer | None:
        """The index, if another image brought its head here."""
        with suppress(CacheError):
            head = self._tocs.load(layer, index.head.digest)
            if head is not None:
                check_windows(index, head)
                return self._tocs.indexed(head, place.attachments)
        return None

    def _take_in(self, place: Place, index: LayerIndex, layer: ImageLayer, data: bytes) -> IndexedLayer:
        head = check_head(data, index.head.digest, layer.descriptor, layer.diff_id)
        check_windows(index, head)
        try:
            self._tocs.save(layer.descriptor.digest, head.digest, data)
        except CacheError as error:
            _log.warning("%s", error)
        return self._tocs.indexed(head, place.attachments)
