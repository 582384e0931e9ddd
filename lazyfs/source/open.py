"""The one door to all sources."""

import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import cache, partial
from typing import NamedTuple

import trio

from lazyfs.oci.image_name import ArchiveImage, DockerArchiveImage, ImageName, LayoutImage, RegistryImage
from lazyfs.oci.reference import Reference
from lazyfs.source.archive import open_docker_archive, open_oci_archive
from lazyfs.source.base import Source
from lazyfs.source.connections import Connections
from lazyfs.source.control import ControlClient, new_client
from lazyfs.source.counters import Counters
from lazyfs.source.host import Host
from lazyfs.source.hosts_config import endpoints_of
from lazyfs.source.http_pool import HttpPool
from lazyfs.source.layout import open_layout
from lazyfs.source.registry import RegistrySource
from lazyfs.source.settings import Access, Endpoint, SourceSettings, user_agent
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
    """A reference as a source; `mirrors` are asked first, then what `hosts_dir` says, then the registry.

    Raises:
        ConfigError: what `hosts_dir` says of the registry makes no sense, or a certificate cannot be used.
    """
    own = await trio.to_thread.run_sync(endpoints_of, reference.registry, settings)
    endpoints = (*mirrors, *own)
    trusted = frozenset(origin_of(endpoint.base_url).host for endpoint in endpoints)
    counters = Counters()
    async with AsyncExitStack() as stack:
        routes: dict[Access, Route] = {}
        for access in (Access(), *(endpoint.access for endpoint in endpoints)):
            if access not in routes:
                routes[access] = await stack.enter_async_context(
                    open_route(settings, access, trusted, counters)
                )
        await trio.to_thread.run_sync(_prepare, [routes[end.access] for end in endpoints if _is_tls(end)])
        hosts = []
        for endpoint in endpoints:
            route = routes[endpoint.access]
            authenticator = Authenticator(
                endpoint, reference.repository, settings.credentials, route.control, counters
            )
            # Where others have the same, the next one is the next attempt.
            policy = settings.retry if endpoint is endpoints[-1] else replace(settings.retry, retries=0)
            hosts.append(
                Host(
                    endpoint, reference.repository, authenticator, route.control, route.pool, policy, counters
                )
            )
        yield RegistrySource(reference, hosts, routes[Access()].pool, settings.retry, counters)


class Route(NamedTuple):
    """Connections that are made in one way.

    Attributes:
        control: for documents.
        pool: for ranges.
        tls: what is demanded of servers.
    """

    control: ControlClient
    pool: HttpPool
    tls: Callable[[], ssl.SSLContext]


@asynccontextmanager
async def open_route(
    settings: SourceSettings, access: Access, trusted: frozenset[str], counters: Counters
) -> AsyncIterator[Route]:
    """A route to hosts that are to be reached in one way.

    Args:
        settings: how to reach registries.
        access: what these hosts take beside.
        trusted: hosts that the user named.
        counters: where requests and bytes are counted.
    """
    tls = cache(partial(settings.tls_context, access))
    connect_timeout_s = min(access.connect_timeout_s or settings.stall_timeout_s, settings.stall_timeout_s)
    connections = Connections(
        tls, settings.proxy, settings.stall_timeout_s, connect_timeout_s, settings.max_connections, trusted
    )
    headers = {"User-Agent": user_agent(), "Accept-Encoding": "identity", "Accept": "*/*"}
    async with (
        new_client(settings, tls, connect_timeout_s) as client,
        HttpPool(connections, settings.max_connections, headers, counters) as pool,
    ):
        yield Route(ControlClient(client, settings, counters, trusted), pool, tls)


def get_ready(settings: SourceSettings) -> None:
    """Have in memory what the first request needs, 0.1 s of reading. For a worker thread.

    Raises:
        ConfigError: a certificate cannot be used.
    """
    import httpcore  # noqa: F401, PLC0415  # httpx would with its first request; not all commands make one

    settings.tls_context()


def _is_tls(endpoint: Endpoint) -> bool:
    return origin_of(endpoint.base_url).scheme == "https"


def _prepare(routes: Sequence[Route]) -> None:
    """Read certificates now, where a mistake in them can still be told."""
    for route in routes:
        route.tls()
