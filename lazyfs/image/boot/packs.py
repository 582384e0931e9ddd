"""Where the boot pack of an image is: made here, remembered, or published beside the image."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

import trio
from msgspec import Struct

from indexer.boot_pack import PackHead, decode_pack_head
from indexer.digest import sha256_digest
from indexer.errors import IndexerError
from lazyfs.cache.cache import Cache
from lazyfs.errors import CacheError, LazyfsError, NotFound
from lazyfs.image.boot.pack_artifact import (
    BOOT_TYPE,
    MAX_PACK,
    PACK_TYPE,
    generation_of,
    newest_first,
    parse_pack_artifact,
)
from lazyfs.image.resolve import ResolvedImage
from lazyfs.image.trust.candidates import Place, counted, may_count
from lazyfs.image.trust.demands import Demands
from lazyfs.oci.descriptor import Descriptor
from lazyfs.source.base import Blob
from lazyfs.source.local.source import LocalBlob

KEPT: Final = 8
"""Files of one image that are kept: packs made here, and heads of others."""

_MAX_CANDIDATES: Final = 4
_ABSENT_FOR_S: Final = 86400.0  # after which it is looked again whether there is one
_PACK, _HEAD = ".pack", ".head"

_log = logging.getLogger(__name__)


class FoundPack(Struct, frozen=True):
    """A boot pack of an image.

    Attributes:
        blob: its bytes.
        digest: of them.
        where: for people.
        generation: see `pack_artifact`; 0 where it is not known.
        head: its head, if that is here.
        keep_head: takes its head when that has come; in a worker thread.
    """

    blob: Blob
    digest: str
    where: str
    generation: int = 0
    head: PackHead | None = None
    keep_head: Callable[[bytes], None] | None = None


class BootPacks:
    """Finds boot packs.

    Args:
        cache: where those that were made here are, and what is known of others.
        places: where to look, in order.
        demands: what is demanded of them.
        offline: ask nobody.
    """

    def __init__(
        self, cache: Cache, places: Sequence[Place], demands: Demands, *, offline: bool = False
    ) -> None:
        self._cache = cache
        self._places = {place.name: place for place in places}
        self._demands = demands
        self._offline = offline
        self._one_at_a_time = trio.Lock()

    async def find(self, resolved: ResolvedImage, *, ask: bool) -> FoundPack | None:
        """The pack of an image: made here, else known, else (with `ask`) published; None if there is none.

        What stands in the way is logged: without a pack a start only takes longer. Of two who ask at once,
        one asks others.
        """
        async with self._one_at_a_time:
            return await self._find(resolved, ask=ask)

    async def _find(self, resolved: ResolvedImage, *, ask: bool) -> FoundPack | None:
        try:
            kept = await trio.to_thread.run_sync(self.kept, resolved.descriptor.digest)
            if kept is not None or self._offline:
                return kept
            known = self._cache.references.recall(self._key(resolved))
            if known is not None:
                found = await trio.to_thread.run_sync(self._known, resolved, known.descriptor)
                if found or (not known.descriptor and time.time() < known.when + _ABSENT_FOR_S):
                    return found
            if not ask:
                return None
            found = await self.published(resolved)
            self._cache.references.remember(self._key(resolved), _facts(found), time.time())
        except (LazyfsError, IndexerError) as error:
            _log.warning("no boot pack: %s", error)
            return None
        return found

    def kept(self, manifest: str) -> FoundPack | None:
        """The pack that was made here last. Blocks for the disk.

        Raises:
            CacheError: it cannot be read.
        """
        for name in self._cache.packs.names(manifest):
            data = self._cache.packs.load(manifest, name) if name.endswith(_PACK) else None
            if data is None:
                continue
            with suppress(IndexerError):
                digest = sha256_digest(data)
                return FoundPack(
                    LocalBlob(_Kept(data), digest, len(data)),
                    digest,
                    "made here",
                    head=decode_pack_head(data),
                )
        return None

    def keep(self, manifest: str, pack: bytes) -> None:
        """Keep a pack that was made here, in place of others. Blocks for the disk.

        Raises:
            CacheError: there is no room.
        """
        own = f"{sha256_digest(pack)[7:]}{_PACK}"
        self._cache.packs.save(manifest, own, pack, KEPT)
        for name in self._cache.packs.names(manifest):
            if name.endswith(_PACK) and name != own:
                self._cache.packs.remove(manifest, name)

    async def published(self, resolved: ResolvedImage) -> FoundPack | None:
        """The pack that is published for an image; None if there is none that counts.

        Raises:
            LazyfsError, IndexerError: a place does not tell, or what it tells makes no sense.
        """
        for place in self._places.values():
            if not may_count(place, self._demands):
                continue
            links = await place.attachments.referrers(resolved.descriptor.digest, BOOT_TYPE)
            for link in await counted(
                place, newest_first(links)[:_MAX_CANDIDATES], self._demands, "boot pack"
            ):
                try:
                    pack = parse_pack_artifact(
                        await place.attachments.document(link), resolved.descriptor.digest
                    )
                except (IndexerError, NotFound) as error:  # a list may be longer than what is there
                    _log.warning("boot pack %s in %s cannot be used: %s", link.digest, place.name, error)
                    continue
                return self._found(resolved, place, pack, generation_of(link))
        return None

    def forget(self, resolved: ResolvedImage, pack: FoundPack) -> None:
        """A pack was of no use: the next start looks for one anew. Blocks for the disk."""
        try:
            self._cache.references.forget(self._key(resolved))
            self._cache.packs.remove(resolved.descriptor.digest, _head_name(pack.digest))
        except CacheError as error:
            _log.warning("%s", error)

    def forget_absence(self, resolved: ResolvedImage) -> None:
        """That there is no pack does not hold for the next start. Blocks for the disk."""
        with suppress(CacheError):
            known = self._cache.references.recall(self._key(resolved))
            if known is not None and not known.descriptor:
                self._cache.references.forget(self._key(resolved))

    def _found(self, resolved: ResolvedImage, place: Place, pack: Descriptor, generation: int) -> FoundPack:
        manifest = resolved.descriptor.digest
        name = _head_name(pack.digest)
        data = self._cache.packs.load(manifest, name)
        head = None
        if data is not None:
            with suppress(IndexerError):
                head = decode_pack_head(data)
        keep = partial(self._keep_head, manifest, name)
        return FoundPack(place.attachments.blob(pack), pack.digest, place.name, generation, head, keep)

    def _keep_head(self, manifest: str, name: str, data: bytes) -> None:
        with suppress(CacheError):
            self._cache.packs.save(manifest, name, data, KEPT)

    def _known(self, resolved: ResolvedImage, record: Mapping[str, Any]) -> FoundPack | None:
        """A pack that was found for this image before."""
        match record:
            case {"digest": str(digest), "size": int(size), "place": str(name), "generation": int(number)}:
                if name in self._places and 0 < size <= MAX_PACK:
                    return self._found(
                        resolved, self._places[name], Descriptor(PACK_TYPE, digest, size), number
                    )
        return None

    def _key(self, resolved: ResolvedImage) -> str:
        return f"boot pack {self._demands.fingerprint} {resolved.repository} {resolved.descriptor.digest}"


def _head_name(digest: str) -> str:
    return f"{digest.removeprefix('sha256:')}{_HEAD}"


def _facts(found: FoundPack | None) -> dict[str, Any]:
    if found is None:
        return {}
    facts = {"digest": found.digest, "size": found.blob.size}
    return {**facts, "place": found.where, "generation": found.generation}


class _Kept:
    """Content for a LocalBlob."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def find(self, digest: str) -> bytes:
        """The pack."""
        del digest
        return self._data
