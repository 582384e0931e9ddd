"""How sources are to be reached. Values only: whoever builds them reads flags, files and environment."""

import ssl
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from lazyfs.errors import ConfigError
from lazyfs.oci.reference import DOCKER_HUB
from lazyfs.source.credentials import CredentialsProvider, NoCredentials
from lazyfs.source.proxy import ProxyRules
from lazyfs.source.retry import RetryPolicy
from lazyfs.source.urls import is_loopback, origin_of

_HUB_API_HOST = "registry-1.docker.io"


@dataclass(frozen=True, slots=True)
class SourceSettings:
    """How to reach registries.

    Attributes:
        plain_http: whether to speak http; None speaks it to loopback hosts only.
        ca_file: PEM file of further authorities to trust, beside the system's.
        client_cert: PEM files of our certificate and its key.
        stall_timeout_s: longest wait for one byte before an attempt counts as failed.
        retry: how patient to be.
        max_connections: how many requests for blobs may be under way at once.
        credentials: who we are.
        proxy: what to go through.
    """

    plain_http: bool | None = None
    ca_file: Path | None = None
    client_cert: tuple[Path, Path] | None = None
    stall_timeout_s: float = 10.0
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    max_connections: int = 8
    credentials: CredentialsProvider = field(default_factory=NoCredentials)
    proxy: ProxyRules = field(default_factory=ProxyRules)

    def tls_context(self) -> ssl.SSLContext:
        """What to demand of servers, and to show them.

        Raises:
            ConfigError: a certificate or key cannot be used.
        """
        context = ssl.create_default_context()
        try:
            if self.ca_file:
                context.load_verify_locations(self.ca_file)
            if self.client_cert:
                context.load_cert_chain(*self.client_cert)
        except OSError as error:  # also ssl.SSLError
            raise ConfigError(f"certificates cannot be used: {error.strerror or error}") from None
        return context


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One host that serves a registry's content.

    Attributes:
        registry: whose credentials to use, as it stands in references.
        base_url: scheme, host and path up to and including "/v2".
        parameters: query of every request; a mirror wants `ns`, the registry it stands for.
    """

    registry: str
    base_url: str
    parameters: str = ""

    def url(self, path: str) -> str:
        """The URL of `path`, which begins with "/" and may hold a query."""
        if not self.parameters:
            return self.base_url + path
        return f"{self.base_url}{path}{'&' if '?' in path else '?'}{self.parameters}"


def endpoint_of(registry: str, settings: SourceSettings) -> Endpoint:
    """Where a registry itself is reached."""
    host = _HUB_API_HOST if registry == DOCKER_HUB else registry
    plain = settings.plain_http
    if plain is None:
        plain = is_loopback(origin_of(f"http://{host}").host)
    return Endpoint(registry, f"{'http' if plain else 'https'}://{host}/v2")


def user_agent() -> str:
    """What we call ourselves to servers."""
    return f"lazyfs/{version('lazyfs')}"
