"""Ways to hosts: connections kept open, shared by all sources that reach their hosts alike.

A connection costs one round trip, with TLS three. Whoever opens many images, one after the other or at once,
leases their routes from one `Routes`: what the first connected, the next one uses.
"""

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache, partial
from typing import Final, NamedTuple

import httpx
from msgspec import Struct

from lazyfs.source.counters import Counters
from lazyfs.source.http.connections import Connections
from lazyfs.source.http.control import ControlClient, new_client
from lazyfs.source.http.pool import HttpPool
from lazyfs.source.http.settings import Access, FilesVersion, SourceSettings, user_agent


class Route(Struct, frozen=True):
    """Connections that are made in one way.

    Attributes:
        settings: how to reach registries.
        trusted: hosts that the user named; these alone may have link-local addresses.
        tls: what is demanded of servers.
        client: connections for documents.
        connections: connections for ranges.
    """

    settings: SourceSettings
    trusted: frozenset[str]
    tls: Callable[[], ssl.SSLContext]
    client: httpx.AsyncClient
    connections: Connections

    def control(self, counters: Counters) -> ControlClient:
        """For documents; what it costs is counted there."""
        return ControlClient(self.client, self.settings, counters, self.trusted)

    def ranges(self, counters: Counters) -> HttpPool:
        """For blobs; with a bound of its own on how many requests are under way."""
        headers = {"User-Agent": user_agent(), "Accept-Encoding": "identity", "Accept": "*/*"}
        most, check = self.settings.max_connections, self.settings.check_online
        return HttpPool(self.connections, most, headers, counters, check)

    async def aclose(self) -> None:
        """Close what is idle, and what is still in use as soon as it is not."""
        self.connections.close()
        await self.client.aclose()


class Routes:
    """Routes that are open for as long as somebody uses them.

    Args:
        settings: how to reach registries.
    """

    def __init__(self, settings: SourceSettings) -> None:
        self.settings: Final = settings
        self._open: dict[_Key, _Shared] = {}

    def __repr__(self) -> str:
        return f"<Routes {len(self._open)} open>"

    @asynccontextmanager
    async def lease(self, access: Access, trusted: frozenset[str]) -> AsyncIterator[Route]:
        """The route to hosts that are to be reached in one way.

        Certificates that were renewed make it another route: who comes later shows the new ones.

        Args:
            access: what these hosts take beside the settings.
            trusted: hosts that the user named.
        """
        key = _Key(access, trusted, self.settings.tls_version(access))
        shared = self._open.get(key)
        if shared is None:
            shared = self._open[key] = _Shared(_new_route(self.settings, access, trusted))
        shared.users += 1
        try:
            yield shared.route
        finally:
            shared.users -= 1
            if not shared.users:
                del self._open[key]
                await shared.route.aclose()


class _Key(NamedTuple):
    access: Access
    trusted: frozenset[str]
    tls_version: FilesVersion


class _Shared(Struct):
    route: Route
    users: int = 0


def _new_route(settings: SourceSettings, access: Access, trusted: frozenset[str]) -> Route:
    """Connects to nobody yet."""
    tls = cache(partial(settings.tls_context, access))
    stall_timeout_s = settings.stall_timeout_s
    connect_timeout_s = min(access.connect_timeout_s or stall_timeout_s, stall_timeout_s)
    connections = Connections(
        tls, settings.proxy, stall_timeout_s, connect_timeout_s, settings.max_connections, trusted
    )
    return Route(settings, trusted, tls, new_client(settings, tls, connect_timeout_s), connections)
