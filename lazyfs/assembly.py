"""Puts the floors together for one image: cache, source, resolver, indexer."""

import logging
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

import trio
from msgspec import Struct

from indexer.errors import IndexerError
from indexer.spans.scan import Limits
from lazyfs.cache.cache import Cache
from lazyfs.config import Config
from lazyfs.errors import BadReference, ConfigError, NotFound
from lazyfs.image.boot.packs import BootPacks
from lazyfs.image.boot.unasked import bring_prioritised, complete_behind
from lazyfs.image.image import Image, open_image
from lazyfs.image.indexes.foreign import ForeignIndexes
from lazyfs.image.indexes.gathering import IndexFinder, find_indexes
from lazyfs.image.indexes.indexing import (
    IndexedLayer,
    Indexer,
    IndexMode,
    IndexSettings,
    Progress,
    no_progress,
)
from lazyfs.image.indexes.published import PublishedIndexes
from lazyfs.image.reading.fetcher import FetchSettings
from lazyfs.image.reading.readahead import ReadAheadSettings
from lazyfs.image.reading.traffic import Traffic
from lazyfs.image.resolve import ResolvedImage, Resolver
from lazyfs.image.tasks import background_tasks
from lazyfs.image.trust.approval import approve
from lazyfs.image.trust.candidates import Place
from lazyfs.image.trust.demands import Demands
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.image_name import (
    ImageName,
    LayoutImage,
    RegistryImage,
    anchored,
    parse_image,
    repository_of,
)
from lazyfs.oci.manifest import Manifest
from lazyfs.oci.platform import Platform, host_platform, parse_platform
from lazyfs.policy import demands_of
from lazyfs.source.attachments import Attachments, open_attachments
from lazyfs.source.auth.credentials import ConfigCredentials, CredentialsInTurn, CredentialsProvider
from lazyfs.source.base import Source, SourceStatistics
from lazyfs.source.http.proxy import proxy_rules
from lazyfs.source.http.retry import RetryPolicy
from lazyfs.source.http.routes import Routes
from lazyfs.source.http.settings import SourceSettings
from lazyfs.source.image import Seen, nobody_sees
from lazyfs.source.open import open_source
from lazyfs.source.push.artifact import Publisher
from lazyfs.source.push.publisher import open_publisher

_log = logging.getLogger(__name__)


class Workshop(Struct, frozen=True):
    """What commands on one image work with.

    Attributes:
        config: the configuration.
        name: the image's name.
        cache: the cache.
        source: where the image is.
        indexer: finds and makes indexes.
        places: where indexes that others made may be, in order.
        demands: what is demanded of the image and of them.
    """

    config: Config
    name: ImageName
    cache: Cache
    source: Source
    indexer: Indexer
    places: Sequence[Place]
    demands: Demands

    async def resolve(self, seen: Seen = nobody_sees) -> ResolvedImage:
        """The image's manifest, configuration and layers, once it is signed as demanded.

        Args:
            seen: told of the manifest before the configuration is read.
        """
        try:
            resolved = await self.resolver.resolve(self.name, platform_of(self.config), seen)
        except IndexerError as error:
            error.add_note(str(self.name))
            raise
        await self.approve(resolved)
        wanted, found = platform_of(self.config), resolved.config.platform
        if self.config.platform and found.architecture not in {"", wanted.architecture}:
            _log.warning("%s is for %s, and has nothing for %s", self.name, found, wanted)
        return resolved

    async def resolve_all(self) -> list[ResolvedImage]:
        """The same for all platforms of the name."""
        found = await self.resolver.resolve_all(self.name)
        for resolved in found:
            await self.approve(resolved)
        return found

    async def approve(self, resolved: ResolvedImage) -> None:
        """See that an image of this name is signed as demanded.

        Raises:
            NotTrusted: it is not.
        """
        own = next((place.attachments for place in self.places if not place.configured), None)
        await approve(resolved, self.demands, own, self.cache.references, offline=self._offline)

    @property
    def resolver(self) -> Resolver:
        """Resolves names of images in this source."""
        return Resolver(self.source, self.cache.documents, self.cache.references, offline=self._offline)

    @property
    def _offline(self) -> bool:
        """Whether where the image is must not be asked: on this machine nothing keeps us from that."""
        return self.config.offline and isinstance(self.name, RegistryImage)

    @property
    def finders(self) -> Sequence[IndexFinder]:
        """Who knows of indexes that were not made here."""
        if not looks_elsewhere(self.config):
            return ()
        limits = index_settings(self.config).limits
        beside = next((place.attachments for place in self.places if not place.configured), None)
        foreign = ForeignIndexes(self.cache, self.source, beside, self.demands, limits, offline=self._offline)
        return self._published, foreign

    @asynccontextmanager
    async def foreseeing(self, manifest: str = "", layer: str = "") -> AsyncIterator[Seen]:
        """What to have told of the image's manifest, so that what is wanted next is asked for meanwhile.

        Args:
            manifest: its digest, where that is known: then it is asked for at once.
            layer: digest of one of its layers, then.
        """
        async with background_tasks() as nursery:
            at_once = bool(manifest) and self._wants_indexes([layer])
            if at_once:
                nursery.start_soon(self._foresee, manifest)

            def seen(link: Descriptor, manifest: Manifest) -> None:
                if not at_once and self._wants_indexes([layer.digest for layer in manifest.layers]):
                    nursery.start_soon(self._foresee, link.digest)

            yield seen

    def _wants_indexes(self, layers: Iterable[str]) -> bool:
        """Whether others are asked for indexes of these layers, as not all were made here."""
        tocs, name = self.cache.tocs, index_settings(self.config).name
        return looks_elsewhere(self.config) and not all(name in tocs.names(digest) for digest in layers)

    async def _foresee(self, manifest: str) -> None:
        await self._published.foresee(repository_of(self.name), manifest)

    async def known_indexes(self, resolved: ResolvedImage) -> Mapping[str, IndexedLayer]:
        """The indexes by which a mount would read an image's layers at once, by layer digest; makes none."""
        return await find_indexes(resolved, self.indexer, self.finders)

    @property
    def _published(self) -> PublishedIndexes:
        return PublishedIndexes(self.cache, self.places, self.demands, offline=self._offline_for_indexes)

    @property
    def _offline_for_indexes(self) -> bool:
        """The same of where indexes may be: all of these places are asked, or none."""
        elsewhere = isinstance(index_repository(self.config), RegistryImage)
        return self._offline or (self.config.offline and elsewhere)

    @property
    def boot_packs(self) -> BootPacks:
        """Who knows of boot packs."""
        places = self.places if looks_elsewhere(self.config) else ()
        return BootPacks(self.cache, places, self.demands, offline=self._offline_for_indexes)

    def open_publisher(self) -> AbstractAsyncContextManager[Publisher]:
        """Stores indexes where the configuration says, or beside the image.

        Raises:
            BadReference: nothing can be stored there (on entry), or it must not be asked.
        """
        where = place_to_publish(self.config, self.name)
        return open_publisher(where, source_settings(self.config), image=self.name)

    def statistics(self) -> SourceStatistics:
        """What all places together have cost so far."""
        apart = [place.attachments.statistics() for place in self.places if place.configured]
        return sum(apart, start=self.source.statistics())


def open_cache(config: Config) -> Cache:
    """The configured cache.

    Raises:
        CacheError: it cannot be used.
    """
    return Cache(
        config.cache_dir,
        free_floor_bytes=config.free_floor_mib << 20,
        quota_bytes=config.cache_quota_mib << 20,
    )


def platform_of(config: Config) -> Platform:
    """The configured platform, or this machine's."""
    return parse_platform(config.platform) if config.platform else host_platform()


def index_settings(config: Config) -> IndexSettings:
    """How the configuration wants layers indexed."""
    limits = Limits(max_uncompressed=config.max_layer_gib << 30, max_ratio=config.max_ratio)
    mode = IndexMode(config.index)
    return IndexSettings(span_size=config.span_size_kib << 10, limits=limits, mode=mode)


def source_settings(config: Config, given: CredentialsProvider | None = None) -> SourceSettings:
    """How the configuration wants registries asked.

    Args:
        config: the configuration.
        given: credentials that go before the configured ones.
    """
    configured = ConfigCredentials(config.auth_files)
    certificate = config.client_cert
    proxies = {name: getattr(config, name) for name in ("http_proxy", "https_proxy", "no_proxy")}
    return SourceSettings(
        plain_http=config.plain_http,
        ca_file=config.ca_file,
        client_cert=(certificate, config.client_key or certificate) if certificate else None,
        stall_timeout_s=config.stall_timeout_s,
        retry=RetryPolicy(retries=config.retries),
        max_connections=config.max_connections,
        credentials=CredentialsInTurn((given, configured)) if given else configured,
        proxy=proxy_rules(proxies),
        hosts_dir=config.hosts_dir,
        registries_conf=config.registries_conf,
        offline=config.offline,
    )


@asynccontextmanager
async def open_workshop(
    name: ImageName,
    config: Config,
    progress: Progress = no_progress,
    *,
    cache: Cache | None = None,
    demands: Demands | None = None,
    routes: Routes | None = None,
) -> AsyncIterator[Workshop]:
    """Everything that commands on one image need.

    Args:
        name: the image; what is kept of it is kept by its absolute path.
        config: the configuration.
        progress: told of layers that are being indexed.
        cache: the configured cache, where it is open already.
        demands: what is demanded of the image, if not what the configuration says of this very name.
        routes: made with the configuration's `source_settings`, if images are to share connections or
            have credentials given.

    Raises:
        LazyfsError: the cache or the source cannot be opened.
    """
    if cache is None:
        cache = await trio.to_thread.run_sync(open_cache, config)
    name = anchored(name)
    demands = demands or demands_of(config, name)
    routes = routes or Routes(source_settings(config))
    async with AsyncExitStack() as stack:
        source = await stack.enter_async_context(open_source(name, routes.settings, routes))
        places = await _open_places(config, name, source, routes, stack)
        indexer = Indexer(cache, index_settings(config), progress)
        yield Workshop(config, name, cache, source, indexer, places, demands)


async def _open_places(
    config: Config, name: ImageName, source: Source, routes: Routes, stack: AsyncExitStack
) -> Sequence[Place]:
    """Where to look for indexes of an image: where the user says, then beside it."""
    places = []
    elsewhere = index_repository(config)
    if elsewhere is not None and looks_elsewhere(config):
        found = await _attachments(elsewhere, routes, stack)
        places += [Place(str(elsewhere), found, configured=True)] if found else []
    beside = await stack.enter_async_context(open_attachments(name, routes.settings, source))
    return [*places, Place("the image's repository", beside, configured=False)] if beside else places


async def _attachments(name: ImageName, routes: Routes, stack: AsyncExitStack) -> Attachments | None:
    try:
        return await stack.enter_async_context(open_attachments(name, routes.settings, routes=routes))
    except NotFound as error:
        _log.warning("no indexes are looked for in %s: %s", name, error)
        return None


def looks_elsewhere(config: Config) -> bool:
    """Whether indexes that were not made here are wanted."""
    return IndexMode(config.index) in (IndexMode.AUTO, IndexMode.REGISTRY)


def index_repository(config: Config) -> RegistryImage | LayoutImage | None:
    """Where the configuration says that indexes are; None for beside the image.

    Raises:
        BadReference, ConfigError: no index can be there.
    """
    if not config.index_repo:
        return None
    name = anchored(parse_image(config.index_repo))
    if isinstance(name, RegistryImage | LayoutImage):
        return name
    raise ConfigError(f"index_repo: {config.index_repo!r} is neither a repository nor oci:DIR")


def place_to_publish(config: Config, image: ImageName) -> ImageName:
    """Where the configuration says that what speaks of an image is stored.

    Raises:
        BadReference: it is a registry, which must not be asked.
    """
    where = index_repository(config) or image
    refuse_offline(config, where)
    return where


def refuse_offline(config: Config, target: ImageName) -> None:
    """Raise BadReference where something is to be stored in a registry that must not be asked."""
    if config.offline and isinstance(target, RegistryImage):
        raise BadReference(f"{target} is in a registry, and offline none is asked: leave --offline out")


def fetch_settings(config: Config, *, record: bool = False) -> FetchSettings:
    """How the configuration wants content fetched; for a recording nothing that is not wanted."""
    ahead = ReadAheadSettings(most_reach=0) if record else ReadAheadSettings()
    rate = config.limit_rate_kib << 10
    traffic = Traffic(
        config.background_rate_kib << 10,
        patient=config.background != "full",
        rate=rate,
        connections=config.max_connections,
    )
    settings = FetchSettings(timeout_s=config.read_timeout_s, read_ahead=ahead, traffic=traffic)
    return settings.paced(rate)


@asynccontextmanager
async def opened(workshop: Workshop, *, mounted: bool = False, record: bool = False) -> AsyncIterator[Image]:
    """The workshop's image, indexed if need be, open for reading.

    Args:
        workshop: the image's.
        mounted: whether it is opened to be mounted: then its start is hastened by a boot pack.
        record: whether only what readers want is to be fetched.

    Raises:
        IndexerError: something of it is damaged.
        LazyfsError: something of it cannot be had.
    """
    fetching = fetch_settings(workshop.config, record=record)
    source, indexer, cache = workshop.source, workshop.indexer, workshop.cache
    packs = workshop.boot_packs if mounted and not record and workshop.config.boot_pack else None
    async with workshop.foreseeing() as seen:
        resolved = await workshop.resolve(seen)
        async with (
            open_image(resolved, source, indexer, cache, fetching, workshop.finders, packs) as image,
            background_tasks() as nursery,
        ):
            heads = [index.head for index in image.indexed]
            nursery.start_soon(bring_prioritised, zip(heads, image.layers, strict=True), image.boot)
            if mounted and not record and workshop.config.background != "off":
                nursery.start_soon(complete_behind, image.by_names.values(), image.boot)
            yield image
