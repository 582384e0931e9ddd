"""Rules about URLs: where one may send us, what may be shown of it, and how long a signed one lives."""

import ipaddress
import socket
from collections.abc import Mapping
from datetime import datetime
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, quote, urljoin, urlsplit

from lazyfs.errors import SourceError

MAX_REDIRECTS: Final = 10
REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
DEFAULT_LIFETIME_S: Final = 300.0
MAX_LIFETIME_S: Final = 3600.0
MIN_LIFETIME_S: Final = 10.0

_MAX_URL_LENGTH = 16_384
_PORTS = {"http": 80, "https": 443}
_PRINTABLE = "".join(chr(code) for code in range(0x21, 0x7F))


class Origin(NamedTuple):
    """Who answers at a URL: credentials given to one origin are for no other."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if _PORTS[self.scheme] == self.port else f":{self.port}"
        return f"{self.scheme}://{host}{port}"


def origin_of(url: str) -> Origin:
    """The origin of an http or https URL.

    Raises:
        SourceError: it is no such URL.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
        (parts.hostname or "").encode("idna")  # as resolvers do, whose error would be none of theirs
    except ValueError:
        raise SourceError(f"not a URL: {shown(url)!r}") from None
    if parts.scheme not in _PORTS or not parts.hostname or len(url) > _MAX_URL_LENGTH:
        raise SourceError(f"not an http or https URL: {shown(url)!r}")
    return Origin(parts.scheme, parts.hostname, port or _PORTS[parts.scheme])


def shown(url: str) -> str:
    """A URL as it may be shown: without user, query and fragment, where secrets stand."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "(unreadable URL)"
    return f"{parts.scheme}://{host}{parts.path}"[:300] if host else parts.path[:300]


def redirect_target(url: str, location: str) -> str:
    """The absolute URL that a `Location` header at `url` points to, fit to be sent as it is.

    A signed URL is left as it was signed; only what cannot stand in a request line is escaped.

    Raises:
        SourceError: there is no target, it is no http URL, leaves TLS, or is a link-local address.
    """
    if not location:
        raise SourceError("a redirect without a target", url=shown(url))
    try:
        target = urljoin(url, location)
    except ValueError:
        raise SourceError("a redirect to something that is not a URL", url=shown(url)) from None
    target = quote(target.partition("#")[0], safe=_PRINTABLE)
    origin = origin_of(target)
    if origin_of(url).scheme == "https" and origin.scheme == "http":
        raise SourceError(f"refused: a redirect from https to http ({shown(target)})", url=shown(url))
    if is_link_local(origin.host):
        raise SourceError(
            f"refused: a redirect to the link-local address {origin.host}, where clouds keep credentials",
            url=shown(url),
        )
    return target


def is_link_local(host: str) -> bool:
    """Whether `host` is a literal link-local address, where clouds keep their machines' credentials.

    All forms count that a resolver takes for an IPv4 address, as 2852039166 or 0xa9.0xfe.43518.
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        try:
            address = ipaddress.IPv4Address(socket.inet_aton(host))
        except (OSError, ValueError):
            return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return address.is_link_local


def check_peer(origin: Origin, address: str) -> None:
    """See that who answers for a host has no link-local address, whatever its name.

    Raises:
        SourceError: it has.
    """
    if is_link_local(address):
        raise SourceError(f"refused: {origin} has the link-local address {address}")


def is_loopback(host: str) -> bool:
    """Whether `host` (without port) is this machine by name or number."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def lifetime_s(url: str, now: float) -> float:
    """Seconds for which a signed URL may be used again.

    Signers write the end in the query: `X-Amz-Expires`, `X-Goog-Expires` (seconds from signing), `Expires`
    (seconds since 1970), `se` (a date, Azure). A tenth is left as a margin; hints that make no sense, as from
    clocks that disagree, are kept between MIN_LIFETIME_S and MAX_LIFETIME_S.

    Args:
        url: the target of a redirect.
        now: seconds since 1970.
    """
    query = {name.lower(): value for name, value in parse_qsl(urlsplit(url).query)}
    hinted = _hinted_lifetime_s(query, now)
    return DEFAULT_LIFETIME_S if hinted is None else min(max(hinted * 0.9, MIN_LIFETIME_S), MAX_LIFETIME_S)


def _hinted_lifetime_s(query: Mapping[str, str], now: float) -> float | None:
    for name, base in (("x-amz-expires", 0.0), ("x-goog-expires", 0.0), ("expires", now)):
        value = query.get(name, "")
        if value.isascii() and value.isdigit() and len(value) < 16:
            return int(value) - base
    try:
        return datetime.fromisoformat(query["se"]).timestamp() - now
    except (KeyError, ValueError, OverflowError):
        return None
