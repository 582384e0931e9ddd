"""The one door to all sources."""

import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import NamedTuple

import trio
from msgspec.structs import replace

from lazyfs.oci.image_name import ArchiveImage, DockerArchiveImage, ImageName, LayoutImage, RegistryImage
from lazyfs.oci.reference import Reference
from lazyfs.source.base import Source
from lazyfs.source.counters import Counters
from lazyfs.source.hosts.hosts_config import endpoints_of
from lazyfs.source.http.control import ControlClient
from lazyfs.source.http.pool import HttpPool
from lazyfs.source.http.routes import Routes
from lazyfs.source.http.settings import Access, Endpoint, SourceSettings
from lazyfs.source.http.urls import origin_of
from lazyfs.source.local.archive import open_docker_archive, open_oci_archive
from lazyfs.source.local.layout import open_layout
from lazyfs.source.registry.host import Host
from lazyfs.source.registry.source import RegistrySource
from lazyfs.source.registry.tokens import Authenticator


@asynccontextmanager
async def open_source(
    image: ImageName, settings: SourceSettings, routes: Routes | None = None
) -> AsyncIterator[Source]:
    """The source of an image, for as long as the context lasts. Nothing is asked of a registry yet.

    Args:
        image: its name.
        settings: how to reach registries.
        routes: made with the same settings, if connections are to be shared with other sources.

    Raises:
        NotFound: a directory or file is not there.
        FormatError: it is no layout or archive.
        ConfigError: a certificate or key cannot be used.
    """
    async with _opened(image, settings, routes) as source:
        yield source


def _opened(
    image: ImageName, settings: SourceSettings, routes: Routes | None
) -> AbstractAsyncContextManager[Source]:
    match image:
        case RegistryImage(reference):
            return open_registry(reference, settings, routes=routes)
        case LayoutImage(directory, tag):
            return open_layout(directory, tag)
        case ArchiveImage(file, tag):
            return open_oci_archive(file, tag)
        case DockerArchiveImage(file, chosen):
            return open_docker_archive(file, chosen)


@asynccontextmanager
async def open_registry(
    reference: Reference,
    settings: SourceSettings,
    routes: Routes | None = None,
) -> AsyncIterator[RegistrySource]:
    """A reference as a source: what `hosts_dir` or `registries_conf` says is asked first.

    Args:
        reference: an image, or its repository.
        settings: how to reach registries.
        routes: as for `open_source`.

    Raises:
        ConfigError: what is said there of the registry makes no sense, or a certificate cannot be used.
    """
    endpoints = await trio.to_thread.run_sync(
        endpoints_of, reference.registry, settings, reference.repository
    )
    trusted = frozenset(origin_of(endpoint.base_url).host for endpoint in endpoints)
    counters = Counters()
    routes = routes or Routes(settings)
    async with AsyncExitStack() as stack:
        ways: dict[Access, _Way] = {}
        for access in (Access(), *(endpoint.access for endpoint in endpoints)):
            if access not in ways:
                route = await stack.enter_async_context(routes.lease(access, trusted))
                ways[access] = _Way(route.tls, route.control(counters), route.ranges(counters))
        await trio.to_thread.run_sync(_prepare, [ways[end.access] for end in endpoints if _is_tls(end)])
        hosts = []
        for endpoint in endpoints:
            _, control, ranges = ways[endpoint.access]
            repository = endpoint.repository or reference.repository
            authenticator = Authenticator(endpoint, repository, settings.credentials, control, counters)
            # Where others have the same, the next one is the next attempt.
            policy = settings.retry if endpoint is endpoints[-1] else replace(settings.retry, retries=0)
            hosts.append(Host(endpoint, repository, authenticator, control, ranges, policy, counters))
        yield RegistrySource(reference, hosts, ways[Access()].ranges, settings.retry, counters)


class _Way(NamedTuple):
    """A source's own use of a route."""

    tls: Callable[[], ssl.SSLContext]
    control: ControlClient
    ranges: HttpPool


def get_ready(settings: SourceSettings) -> None:
    """Have in memory what the first request needs, 0.1 s of reading. For a worker thread.

    Raises:
        ConfigError: a certificate cannot be used.
    """
    import httpcore  # noqa: F401, PLC0415  # httpx would with its first request; not all commands make one

    settings.tls_context()


def _is_tls(endpoint: Endpoint) -> bool:
    return origin_of(endpoint.base_url).scheme == "https"


def _prepare(ways: Sequence[_Way]) -> None:
    """Read certificates now, where a mistake in them can still be told."""
    for way in ways:
        way.tls()
