"""Which requests go through a proxy: the conventions around HTTPS_PROXY and NO_PROXY."""

import base64
import ipaddress
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

from msgspec import Struct

from lazyfs.errors import ConfigError
from lazyfs.source.http.urls import Origin, is_loopback


class Proxy(Struct, frozen=True):
    """An HTTP proxy, spoken to in the clear.

    Attributes:
        host: its name or address.
        port: its port.
        authorization: value of Proxy-Authorization, or "".
    """

    host: str
    port: int
    authorization: str = ""

    def __repr__(self) -> str:
        return f"<Proxy {self.host}:{self.port}>"

    @property
    def origin(self) -> Origin:
        """Who answers there."""
        return Origin("http", self.host, self.port)


class ProxyRules(Struct, frozen=True):
    """Which proxy serves which origin.

    Attributes:
        http: for http URLs, or None.
        https: for https URLs, or None.
        exceptions: hosts to reach directly: names (with their subdomains), addresses, networks, "*", each
            perhaps with a port.
    """

    http: Proxy | None = None
    https: Proxy | None = None
    exceptions: tuple[str, ...] = ()

    def proxy_for(self, origin: Origin) -> Proxy | None:
        """The proxy for an origin; None is to go there directly, as always on loopback."""
        proxy = self.https if origin.scheme == "https" else self.http
        if proxy is None or is_loopback(origin.host):
            return None
        return None if any(_matches(rule, origin) for rule in self.exceptions) else proxy


def proxy_rules(environment: Mapping[str, str]) -> ProxyRules:
    """The rules that HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY give, in either case.

    Raises:
        ConfigError: a value is no http:// URL.
    """

    def value(name: str) -> str:
        return environment.get(name.lower()) or environment.get(name) or ""

    # In a CGI program HTTP_PROXY could be a client's header; curl reads only the lower-case name, so do we.
    everywhere = value("ALL_PROXY")
    return ProxyRules(
        http=_parse_proxy("http_proxy", environment.get("http_proxy") or everywhere),
        https=_parse_proxy("https_proxy", value("HTTPS_PROXY") or everywhere),
        exceptions=tuple(rule.strip() for rule in value("NO_PROXY").lower().split(",") if rule.strip()),
    )


def _parse_proxy(name: str, text: str) -> Proxy | None:
    if not text:
        return None
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        port = parts.port or 80
    except ValueError:
        raise ConfigError(f"{name}: not a URL") from None
    if parts.scheme != "http" or not parts.hostname:
        raise ConfigError(f"{name}: only proxies at http:// URLs are supported")
    if parts.username is None:
        return Proxy(parts.hostname, port)
    user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return Proxy(parts.hostname, port, "Basic " + base64.b64encode(user.encode()).decode())


def _matches(rule: str, origin: Origin) -> bool:
    if rule == "*":
        return True
    host, colon, port = rule.rpartition(":")
    if colon and port.isdigit() and (host.startswith("[") or ":" not in host):
        return int(port) == origin.port and _matches(host.strip("[]"), origin)
    try:
        return ipaddress.ip_address(origin.host) in ipaddress.ip_network(rule, strict=False)
    except ValueError:
        domain = rule.removeprefix("*").removeprefix(".")
        return origin.host == domain or origin.host.endswith("." + domain)
