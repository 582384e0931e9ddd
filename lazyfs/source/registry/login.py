"""Logging in: credentials are tried at their registry before anybody keeps them."""

import trio
from msgspec import Struct
from msgspec.structs import replace

from lazyfs.errors import BadReference, SourceError, Unauthorized
from lazyfs.oci.reference import parse_reference
from lazyfs.source.auth.credentials import Credentials, StaticCredentials
from lazyfs.source.counters import Counters
from lazyfs.source.hosts.hosts_config import endpoints_of
from lazyfs.source.http.answers import failure
from lazyfs.source.http.routes import Routes
from lazyfs.source.http.settings import Endpoint, SourceSettings, endpoint_of
from lazyfs.source.http.urls import origin_of
from lazyfs.source.registry.host import Host
from lazyfs.source.registry.tokens import Authenticator


class Login(Struct, frozen=True):
    """What came of trying.

    Attributes:
        credentials: to be kept: an identity token if the registry gave one, or what was tried.
        checked: whether the registry asked for them; if not, they may be right or wrong.
    """

    credentials: Credentials
    checked: bool


def parse_registry(text: str) -> str:
    """The registry that `text` names, as it stands in references; Docker's spelling as a URL will do.

    Raises:
        BadReference: it names none.
    """
    host = text.partition("://")[2] or text
    host, _, path = host.partition("/")
    if path.strip("/") not in ("", "v1", "v2"):
        raise BadReference(f"{text[:200]!r}: a registry is HOST[:PORT], without a path")
    registry = parse_reference(f"{host}/x").registry
    if host not in (registry, "index.docker.io"):
        raise BadReference(f"{text[:200]!r} is not a registry's host; docker.io is Docker's own")
    return registry


async def try_login(registry: str, credentials: Credentials, settings: SourceSettings) -> Login:
    """Have the registry judge credentials, by `GET /v2/` (distribution-spec, "Determining Support").

    Raises:
        Unauthorized: it refuses them.
        Unreachable: it does not answer.
        SourceError: it does not answer like a registry.
        ConfigError: what is set for reaching it makes no sense.
    """
    endpoint = await trio.to_thread.run_sync(_endpoint, registry, settings)
    trusted = frozenset({origin_of(endpoint.base_url).host})
    counters = Counters()
    async with Routes(settings).lease(endpoint.access, trusted) as route:
        provider, control = StaticCredentials(registry, credentials), route.control(counters)
        authenticator = Authenticator(endpoint, "", provider, control, counters, for_login=True)
        host = Host(endpoint, "", authenticator, control, route.ranges(counters), settings.retry, counters)
        what = f"login to {registry}"
        try:
            reply = await host.request("GET", f"{endpoint.base_url}/", what)
        except Unauthorized as error:
            raise _refused(registry, error.status) from error
    if reply.status in (401, 403):
        raise _refused(registry, reply.status)
    if reply.status == 404:
        raise SourceError(f"{what}: it does not answer like a registry (HTTP 404)", status=404)
    if reply.status != 200:
        raise failure(reply, what)
    token = authenticator.identity_token
    kept = Credentials(username=credentials.username, identity_token=token) if token else credentials
    return Login(kept, authenticator.was_asked)


def _refused(registry: str, status: int | None) -> Unauthorized:
    return Unauthorized(
        f"login to {registry}: it refuses this user and password (HTTP {status}); nothing was kept",
        status=status,
    )


def _endpoint(registry: str, settings: SourceSettings) -> Endpoint:
    """The registry itself, not what stands in for it: credentials are for it alone."""
    last = endpoints_of(registry, settings)[-1]
    return replace(last, parameters="") if last.registry == registry else endpoint_of(registry, settings)
