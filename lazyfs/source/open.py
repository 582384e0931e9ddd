"""The one door to all sources."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import cache

import trio

from lazyfs.oci.image_name import ArchiveImage, DockerArchiveImage, ImageName, LayoutImage, RegistryImage
from lazyfs.oci.reference import Reference
from lazyfs.source.archive import open_docker_archive, open_oci_archive
from lazyfs.source.base import Source
from lazyfs.source.connections import Connections
from lazyfs.source.control import ControlClient, new_client
from lazyfs.source.counters import Counters
from lazyfs.source.host import Host
from lazyfs.source.http_pool import HttpPool
from lazyfs.source.layout import open_layout
from lazyfs.source.registry import RegistrySource
from lazyfs.source.settings import Endpoint, SourceSettings, endpoint_of, user_agent
from lazyfs.source.tokens import Authenticator
from lazyfs.source.urls import origin_of


@asynccontextmanager
async def open_source(image: ImageName, settings: SourceSettings) -> AsyncIterator[Source]:
    """The source of an image, for as long as the context lasts. Nothing is asked of a registry yet.

    Raises:
        NotFound: a directory or file is not there.
        FormatError: it is no layout or archive.
        ConfigError: a certificate or key cannot be used.
    """
    async with _opened(image, settings) as source:
        yield source


def _opened(image: ImageName, settings: SourceSettings) -> AbstractAsyncContextManager[Source]:
    match image:
        case RegistryImage(reference):
            return open_registry(reference, settings)
        case LayoutImage(directory, tag):
            return open_layout(directory, tag)
        case ArchiveImage(file, tag):
            return open_oci_archive(file, tag)
        case DockerArchiveImage(file, chosen):
            return open_docker_archive(file, chosen)


@asynccontextmanager
async def open_registry(
    reference: Reference, settings: SourceSettings, mirrors: tuple[Endpoint, ...] = ()
) -> AsyncIterator[RegistrySource]:
    """A reference as a source; `mirrors` are asked before the registry itself, in order."""
    endpoints = (*mirrors, endpoint_of(reference.registry, settings))
    trusted = frozenset(origin_of(endpoint.base_url).host for endpoint in endpoints)
    tls = cache(settings.tls_context)
    if any(origin_of(endpoint.base_url).scheme == "https" for endpoint in endpoints):
        await trio.to_thread.run_sync(tls)
    counters = Counters()
    connections = Connections(
        tls, settings.proxy, settings.stall_timeout_s, settings.max_connections, trusted
    )
    headers = {"User-Agent": user_agent(), "Accept-Encoding": "identity", "Accept": "*/*"}
    async with (
        new_client(settings, tls) as client,
        HttpPool(connections, settings.max_connections, headers, counters) as pool,
    ):
        control = ControlClient(client, settings, counters, trusted)
        hosts = []
        for endpoint in endpoints:
            authenticator = Authenticator(
                endpoint, reference.repository, settings.credentials, control, counters
            )
            hosts.append(
                Host(endpoint, reference.repository, authenticator, control, pool, settings.retry, counters)
            )
        yield RegistrySource(reference, hosts, pool, settings.retry, counters)
