"""Puts the floors together for one image: cache, source, resolver, indexer."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from indexer.scan import Limits
from lazyfs.cache.cache import Cache
from lazyfs.config import Config
from lazyfs.image.fetcher import FetchSettings
from lazyfs.image.image import Image, open_image
from lazyfs.image.indexing import Indexer, IndexSettings, Progress, no_progress
from lazyfs.image.resolve import ResolvedImage, Resolver
from lazyfs.oci.image_name import ImageName
from lazyfs.oci.platform import Platform, host_platform, parse_platform
from lazyfs.source.base import Source
from lazyfs.source.credentials import ConfigCredentials
from lazyfs.source.open import open_source
from lazyfs.source.proxy import proxy_rules
from lazyfs.source.retry import RetryPolicy
from lazyfs.source.settings import SourceSettings


@dataclass(frozen=True, slots=True)
class Workshop:
    """What commands on one image work with.

    Attributes:
        config: the configuration.
        name: the image's name.
        cache: the cache.
        source: where the image is.
        indexer: finds and makes indexes.
    """

    config: Config
    name: ImageName
    cache: Cache
    source: Source
    indexer: Indexer

    async def resolve(self) -> ResolvedImage:
        """The image's manifest, configuration and layers."""
        offline = self.config.offline
        resolver = Resolver(self.source, self.cache.documents, self.cache.references, offline=offline)
        return await resolver.resolve(self.name, platform_of(self.config))


def open_cache(config: Config) -> Cache:
    """The configured cache.

    Raises:
        CacheError: it cannot be used.
    """
    return Cache(config.cache_dir, free_floor_bytes=config.free_floor_mib << 20)


def platform_of(config: Config) -> Platform:
    """The configured platform, or this machine's."""
    return parse_platform(config.platform) if config.platform else host_platform()


def index_settings(config: Config) -> IndexSettings:
    """How the configuration wants layers indexed."""
    limits = Limits(max_uncompressed=config.max_layer_gib << 30, max_ratio=config.max_ratio)
    return IndexSettings(span_size=config.span_size_kib << 10, limits=limits)


def source_settings(config: Config) -> SourceSettings:
    """How the configuration wants registries asked."""
    certificate = config.client_cert
    proxies = {name: getattr(config, name) for name in ("http_proxy", "https_proxy", "no_proxy")}
    return SourceSettings(
        plain_http=config.plain_http,
        ca_file=config.ca_file,
        client_cert=(certificate, config.client_key or certificate) if certificate else None,
        stall_timeout_s=config.stall_timeout_s,
        retry=RetryPolicy(retries=config.retries),
        max_connections=config.max_connections,
        credentials=ConfigCredentials(config.auth_files),
        proxy=proxy_rules(proxies),
        hosts_dir=config.hosts_dir,
    )


@asynccontextmanager
async def open_workshop(
    name: ImageName, config: Config, progress: Progress = no_progress
) -> AsyncIterator[Workshop]:
    """Everything that commands on one image need.

    Raises:
        LazyfsError: the cache or the source cannot be opened.
    """
    cache = await trio.to_thread.run_sync(open_cache, config)
    async with open_source(name, source_settings(config)) as source:
        indexer = Indexer(cache, index_settings(config), progress)
        yield Workshop(config, name, cache, source, indexer)


@asynccontextmanager
async def opened(workshop: Workshop) -> AsyncIterator[Image]:
    """The workshop's image, indexed if need be, open for reading.

    Raises:
        IndexerError: something of it is damaged.
        LazyfsError: something of it cannot be had.
    """
    resolved = await workshop.resolve()
    fetching = FetchSettings(timeout_s=workshop.config.read_timeout_s)
    async with open_image(resolved, workshop.source, workshop.indexer, workshop.cache, fetching) as image:
        yield image
