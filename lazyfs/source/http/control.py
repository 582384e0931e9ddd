"""Requests for documents, tokens and the like: whole bodies, bounded, over httpx.

Nothing here follows a redirect or knows a credential by itself: `Host` and `Authenticator` decide both.
"""

import logging
import ssl
from collections.abc import Callable, Mapping
from functools import partial
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Final

import httpx
import trio
from msgspec import Struct

from indexer.errors import LimitExceeded
from lazyfs.errors import SourceError
from lazyfs.source.counters import Counters
from lazyfs.source.http.answers import EXCERPT_BYTES
from lazyfs.source.http.connections import IDLE_S
from lazyfs.source.http.proxy import Proxy
from lazyfs.source.http.refusals import final_refusal, reason_of, was_refused, way_to
from lazyfs.source.http.retry import Transient
from lazyfs.source.http.settings import SourceSettings, user_agent
from lazyfs.source.http.urls import Origin, check_peer, origin_of, shown

MAX_REPLY_BYTES: Final = 8 << 20

_LIMITS: Final = httpx.Limits(max_connections=100, max_keepalive_connections=8, keepalive_expiry=IDLE_S)

_log = logging.getLogger(__name__)


class Reply(Struct, frozen=True):
    """A whole answer; an `answers.Answer`.

    Attributes:
        status: HTTP status.
        url: where it came from.
        body: all of it.
        fields: its headers.
    """

    status: int
    url: str
    body: bytes
    fields: httpx.Headers

    @property
    def excerpt(self) -> bytes:
        """The body's first bytes."""
        return self.body[:EXCERPT_BYTES]

    def header(self, name: str) -> str:
        """The value of a header, or ""."""
        values = self.headers(name)
        return values[0] if values else ""

    def headers(self, name: str) -> list[str]:
        """All values of a header."""
        return self.fields.get_list(name)

    def close(self) -> None:
        """Nothing is held."""


class ControlClient:
    """One exchange at a time, with our limits and our errors.

    Args:
        client: does the talking; see `new_client`.
        settings: for the proxy rules.
        counters: where requests and bytes are counted.
        trusted_hosts: hosts that the user named; these alone may have link-local addresses.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        settings: SourceSettings,
        counters: Counters,
        trusted_hosts: frozenset[str],
    ) -> None:
        self._client = client
        self._check = settings.check_online
        self._proxy = settings.proxy
        self._counters = counters
        self._trusted_hosts = trusted_hosts

    async def exchange(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        *,
        content: bytes | None = None,
        max_bytes: int = MAX_REPLY_BYTES,
    ) -> Reply:
        """Send one request; the answer, whatever its status.

        Raises:
            Transient: no answer came, or it broke off.
            SourceError: the URL is none, or may not be asked; the answer is encoded.
            Unreachable: the server is not trusted.
            LimitExceeded: the body is longer than `max_bytes`.
        """
        self._check(url)
        guard = self._guard(url)
        self._counters.add("control_requests")
        try:
            async with self._client.stream(
                method, url, headers=dict(headers), content=content, extensions=guard
            ) as response:
                body = await self._bounded(response, url, max_bytes)
                _log.debug("%s %s: %d, %d bytes", method, shown(url), response.status_code, len(body))
                return Reply(response.status_code, url, body, response.headers)
        except (httpx.InvalidURL, UnicodeError):
            raise SourceError(f"not a URL: {shown(url)}") from None
        except httpx.TransportError as error:
            origin = origin_of(url)
            proxy = self._proxy.proxy_for(origin)
            final = final_refusal(origin, error, proxy)
            raise final or Transient(_reason(error, origin, proxy), refused=was_refused(error)) from error

    async def _bounded(self, response: httpx.Response, url: str, max_bytes: int) -> bytes:
        encoding = response.headers.get("content-encoding", "identity").lower()
        if encoding not in ("", "identity") and response.is_success:
            raise SourceError(f"{shown(url)}: the server encodes documents ({encoding[:20]!r})")
        body = bytearray()
        with trio.CancelScope() as enough:
            async for piece in response.aiter_raw():
                body += piece
                self._counters.add("control_bytes", len(piece))
                if len(body) > max_bytes:
                    enough.cancel()  # to break off here would leave generators unfinished
        if len(body) > max_bytes:
            raise LimitExceeded(f"{shown(url)}: more than {max_bytes} bytes")
        return bytes(body)

    def _guard(self, url: str) -> dict[str, Any]:
        """Extensions of a request that end it where it reaches what clouds keep their machines' secrets at.

        The connection itself is looked at, before anything is sent: a name may be another's in a moment.

        Raises:
            SourceError: the URL says so already.
        """
        origin = origin_of(url)
        if origin.host in self._trusted_hosts:
            return {}
        check_peer(origin, origin.host)
        return {} if self._proxy.proxy_for(origin) else {"trace": partial(_check_connection, origin)}


async def _check_connection(origin: Origin, event: str, info: Mapping[str, Any]) -> None:
    """Told by httpcore what happens on a request's way."""
    if event != "connection.connect_tcp.complete":
        return
    stream = info["return_value"]
    try:
        check_peer(origin, str(stream.get_extra_info("server_addr")[0]))
    except SourceError:
        await stream.aclose()
        raise


def new_client(
    settings: SourceSettings, tls: Callable[[], ssl.SSLContext], connect_timeout_s: float
) -> httpx.AsyncClient:
    """An httpx client that keeps no cookies, reads no environment and follows no redirects."""
    return httpx.AsyncClient(
        transport=_ProxyingTransport(settings, tls),
        headers={"User-Agent": user_agent(), "Accept-Encoding": "identity"},
        timeout=httpx.Timeout(settings.stall_timeout_s, connect=connect_timeout_s),
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        follow_redirects=False,
        trust_env=False,
    )


class _ProxyingTransport(httpx.AsyncBaseTransport):
    """Sends each request through the proxy that the rules give for it, or through none."""

    def __init__(self, settings: SourceSettings, tls: Callable[[], ssl.SSLContext]) -> None:
        self._rules = settings.proxy
        self._tls = tls
        self._transports: dict[tuple[object, str], httpx.AsyncHTTPTransport] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """As httpx wants it."""
        proxy = self._rules.proxy_for(origin_of(str(request.url)))
        key = (proxy, request.url.scheme)
        if key not in self._transports:
            headers = {"Proxy-Authorization": proxy.authorization} if proxy and proxy.authorization else {}
            through = httpx.Proxy(str(proxy.origin), headers=headers) if proxy else None
            # Reading the system's authorities takes 20 to 50 ms, which http need not wait for.
            verify = self._tls() if request.url.scheme == "https" else False
            self._transports[key] = httpx.AsyncHTTPTransport(verify=verify, proxy=through, limits=_LIMITS)
        return await self._transports[key].handle_async_request(request)

    async def aclose(self) -> None:
        """As httpx wants it."""
        for transport in self._transports.values():
            await transport.aclose()


def _reason(error: httpx.TransportError, origin: Origin, proxy: Proxy | None) -> str:
    if isinstance(error, httpx.TimeoutException):
        return f"{way_to(origin, proxy)} timed out"
    if isinstance(error, httpx.ConnectError):
        return f"cannot connect to {way_to(origin, proxy)}: {reason_of(error)}"
    if isinstance(error, httpx.ProxyError):
        return f"the proxy to {origin} refused"
    hint = {
        "http": "; does it speak TLS?",
        "https": "; does it want a client certificate (`client_cert`)?",
    }[origin.scheme]
    return f"the connection to {origin} broke ({type(error).__name__}){hint}"
