"""Indexes that other tools made: found in layers and beside images, judged by `trust`, kept in the cache.

Those that the image's manifest names by digest count as much as the image itself. SOCI indexes that merely
refer to it count like any index found beside it. Tables in layers that no manifest names count only with
`--trust-index`; nobody else is asked for them, as every layer would cost a request.
"""

import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from functools import partial
from typing import Final

import trio
from msgspec.structs import replace

from indexer.build import BuiltToc
from indexer.digest import digest_hex
from indexer.errors import IndexerError, Unsupported
from indexer.spans.scan import Limits
from indexer.toc import AddressSpace, Compression, Toc
from indexer.toc_codec import decode_head, encode_toc
from lazyfs.cache.cache import Cache
from lazyfs.errors import CacheError, LazyfsError, NotFound
from lazyfs.image.indexes.embedded_toc import Claim, claim_of, fetch_claimed, fetch_unclaimed
from lazyfs.image.indexes.indexing import IndexedLayer, IndexKind, Voucher, load_index
from lazyfs.image.indexes.soci_finder import SociFinder, Ztocs
from lazyfs.image.indexes.soci_index import fetch_ztoc
from lazyfs.image.resolve import ResolvedImage
from lazyfs.image.tasks import run_all
from lazyfs.image.trust.demands import Demands, IndexTrust
from lazyfs.oci.descriptor import Descriptor
from lazyfs.source.attachments import Attachments
from lazyfs.source.base import Source

_log = logging.getLogger(__name__)

PARALLEL_TABLES: Final = 4
"""Tables that are fetched and read at once: a hostile one may take nine times its size meanwhile, 1.2 GB."""

_UNCLAIMED: Final = "embedded-unclaimed"

Layers = Mapping[str, Descriptor]
"""Layers by digest."""

Found = dict[str, IndexedLayer]


class ForeignIndexes:
    """An `gathering.IndexFinder` of indexes that other tools made.

    Args:
        cache: where they are kept.
        source: the image's repository.
        attachments: the same, asked for what refers to the image; None where nothing can.
        demands: what is demanded of indexes.
        limits: bounds against bombs.
        offline: ask nobody.
    """

    def __init__(
        self,
        cache: Cache,
        source: Source,
        attachments: Attachments | None,
        demands: Demands,
        limits: Limits,
        *,
        offline: bool = False,
    ) -> None:
        self._cache = cache
        self._source = source
        self._demands = demands
        self._limits = limits
        self._offline = offline
        self._limiter = trio.CapacityLimiter(PARALLEL_TABLES)
        self._soci = SociFinder(cache, source, attachments, offline=offline)

    async def find(self, resolved: ResolvedImage, wanted: Collection[str]) -> Mapping[str, IndexedLayer]:
        """As IndexFinder.find says."""
        layers = {layer.descriptor.digest: layer.descriptor for layer in resolved.layers}
        found: Found = {}
        for look in self._strategies():
            missing = {
                digest: layers[digest] for digest in layers if digest in wanted and digest not in found
            }
            if missing:
                found |= await look(resolved, missing)
        return found

    def _strategies(self) -> list[Callable[[ResolvedImage, Layers], Awaitable[Found]]]:
        """Where to look, in order, as far as what is there would count."""
        demands = self._demands
        strategies: list[Callable[[ResolvedImage, Layers], Awaitable[Found]]] = []
        if manifest_counts(demands):
            strategies += [self._claimed, self._named]
        if demands.admits(configured=False, signed=False):
            strategies.append(self._attached)
        if demands.indexes is IndexTrust.ANY:
            strategies.append(self._unclaimed)
        return strategies

    # Strategies

    async def _claimed(self, _: ResolvedImage, layers: Layers) -> Found:
        """Tables in layers that the manifest vouches for."""

        async def bring(layer: Descriptor) -> IndexedLayer | None:
            claim = claim_of(layer)
            if claim is None:
                return None
            name = f"embedded-{digest_hex(claim.digest)}"
            fetch = partial(self._fetch_claimed, layer, claim)
            return await self._kept_or(layer, name, Voucher.MANIFEST, fetch)

        return await self._each(layers, bring)

    async def _unclaimed(self, _: ResolvedImage, layers: Layers) -> Found:
        """Tables in layers that nobody vouches for."""

        async def bring(layer: Descriptor) -> IndexedLayer | None:
            fetch = partial(self._fetch_unclaimed, layer)
            return await self._kept_or(layer, _UNCLAIMED, Voucher.NOBODY, fetch)

        return await self._each(layers, bring)

    async def _named(self, resolved: ResolvedImage, layers: Layers) -> Found:
        """Those of a SOCI index that the manifest names."""
        return await self._from_soci(await self._soci.named(resolved), layers, Voucher.MANIFEST)

    async def _attached(self, resolved: ResolvedImage, layers: Layers) -> Found:
        """Those of a SOCI index that refers to the image."""
        ztocs = await self._soci.attached(resolved)
        gone: list[str] = []
        found = await self._from_soci(ztocs, layers, Voucher.NOBODY, gone.append)
        if gone:  # the index may be an old one that was remembered: look for another
            self._soci.forget(resolved)
            ztocs = await self._soci.attached(resolved)
            missing = {digest: layer for digest, layer in layers.items() if digest not in found}
            found |= await self._from_soci(ztocs, missing, Voucher.NOBODY)
        return found

    async def _from_soci(
        self, ztocs: Ztocs, layers: Layers, voucher: Voucher, gone: Callable[[str], None] = lambda _: None
    ) -> Found:
        """Those that the links lead to; `gone` is told of layers whose zTOC is not there."""

        async def bring(layer: Descriptor) -> IndexedLayer | None:
            link = ztocs[layer.digest]
            fetch = partial(self._fetch_ztoc, layer, link)
            try:
                return await self._kept_or(layer, f"soci-{digest_hex(link.digest)}", voucher, fetch)
            except NotFound:
                gone(layer.digest)
                raise

        return await self._each({digest: layers[digest] for digest in layers if digest in ztocs}, bring)

    # Fetching

    async def _fetch_claimed(self, layer: Descriptor, claim: Claim) -> BuiltToc | None:
        return _without_windows(await fetch_claimed(layer, self._source.blob(layer), claim, self._limits))

    async def _fetch_unclaimed(self, layer: Descriptor) -> BuiltToc | None:
        return _without_windows(await fetch_unclaimed(layer, self._source.blob(layer), self._limits))

    async def _fetch_ztoc(self, layer: Descriptor, link: Descriptor) -> BuiltToc | None:
        return await fetch_ztoc(layer, self._source.blob(layer), self._source, link, self._limits)

    async def _each(
        self, layers: Layers, bring: Callable[[Descriptor], Awaitable[IndexedLayer | None]]
    ) -> Found:
        """What `bring` gives for each layer, some at once; what stands in the way is logged."""
        found: Found = {}

        async def one(layer: Descriptor) -> None:
            try:
                async with self._limiter:
                    indexed = await bring(layer)
            except Unsupported as error:
                _log.info("a foreign index of layer %s is not used: %s", layer.digest, error)
            except (IndexerError, LazyfsError) as error:
                _log.warning("a foreign index of layer %s is passed by: %s", layer.digest, error)
            else:
                if indexed is not None:
                    found[layer.digest] = indexed

        await run_all(partial(one, layer) for layer in layers.values())
        return found

    # Keeping

    async def _kept_or(
        self, layer: Descriptor, name: str, voucher: Voucher, fetch: Callable[[], Awaitable[BuiltToc | None]]
    ) -> IndexedLayer | None:
        """The index kept under a name that is a function of what it says; else fetched and kept."""
        kept = await trio.to_thread.run_sync(self._kept, layer, name, voucher)
        if kept is not None or self._offline:
            return kept
        built = await fetch()
        return await trio.to_thread.run_sync(self._keep, layer, name, voucher, built) if built else None

    def _kept(self, layer: Descriptor, name: str, voucher: Voucher) -> IndexedLayer | None:
        found = load_index(self._cache, layer, name)
        return _described(found, voucher) if found else None

    def _keep(self, layer: Descriptor, name: str, voucher: Voucher, built: BuiltToc) -> IndexedLayer | None:
        data = encode_toc(built.toc)
        try:
            self._cache.tocs.save(layer.digest, name, data, built.windows)
        except CacheError as error:
            _log.warning("%s", error)
        head = decode_head(data)
        if self._cache.quarantine.find(layer.digest, head.digest) is not None:
            _log.warning("index %s is not used: it lied about layer %s", head.digest, layer.digest)
            return None
        return _described(IndexedLayer(head, memoryview(built.windows)), voucher)


def manifest_counts(demands: Demands) -> bool:
    """Whether an index counts that the image's manifest names by digest: it is as good as the image."""
    match demands.indexes:
        case IndexTrust.NONE:
            return False
        case IndexTrust.SIGNED:
            return demands.signed  # then the manifest was seen to be signed
        case _:
            return True


def announces_table(layer: Descriptor) -> bool:
    """Whether a manifest says that there is a table in a layer, which need not be pulled then."""
    with suppress(IndexerError):
        return claim_of(layer) is not None
    return False


def _without_windows(toc: Toc | None) -> BuiltToc | None:
    return BuiltToc(toc, b"") if toc else None


def _described(indexed: IndexedLayer, voucher: Voucher) -> IndexedLayer:
    """An index with what its table tells of the tool that made it, and with who vouches for it."""
    header = indexed.head.header
    if header.address_space is AddressSpace.TAR:
        kind = IndexKind.SOCI
    elif header.compression is Compression.GZIP:
        kind = IndexKind.ESTARGZ
    else:
        kind = IndexKind.ZSTD_CHUNKED
    return replace(indexed, kind=kind, vouched_by=voucher)
