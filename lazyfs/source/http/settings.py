"""How sources are to be reached. Values only: whoever builds them reads flags, files and environment."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Final

from msgspec import Struct, field

from lazyfs import __version__
from lazyfs.errors import ConfigError, NotFound
from lazyfs.oci.reference import DOCKER_HUB
from lazyfs.source.auth.credentials import CredentialsProvider, NoCredentials
from lazyfs.source.http.proxy import ProxyRules
from lazyfs.source.http.retry import RetryPolicy
from lazyfs.source.http.urls import is_loopback, origin_of, shown

_HUB_API_HOST = "registry-1.docker.io"


class Capability(StrEnum):
    """What a host may be asked for: content by digest, tags, uploads, what refers to a manifest."""

    PULL = "pull"
    RESOLVE = "resolve"
    PUSH = "push"
    REFERRERS = "referrers"


FilesVersion = tuple[tuple[int, int, int] | None, ...]
"""Inode, size and time of files, to tell whether they are still the same; None for one that is not there."""

ALL_CAPABILITIES: Final = frozenset(Capability)


class Access(Struct, frozen=True):
    """What it takes to reach one host, beside what holds for all.

    Attributes:
        ca_files: PEM files of further authorities to trust.
        client_certs: PEM files of our certificates and their keys; none leaves it to the general one.
        skip_verify: do not ask who answers.
        connect_timeout_s: longest wait for a connection; None is that for a byte.
    """

    ca_files: tuple[Path, ...] = ()
    client_certs: tuple[tuple[Path, Path], ...] = ()
    skip_verify: bool = False
    connect_timeout_s: float | None = None


_NOTHING_SPECIAL: Final = Access()


class SourceSettings(Struct, frozen=True):
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
        hosts_dir: containerd's directory of mirrors (see hosts_config); None is to have none.
        registries_conf: the file of Podman's mirrors (see registries_conf); None is to have none.
        offline: ask none of them.
    """

    plain_http: bool | None = None
    ca_file: Path | None = None
    client_cert: tuple[Path, Path] | None = None
    stall_timeout_s: float = 10.0
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    max_connections: int = 8
    credentials: CredentialsProvider = field(default_factory=NoCredentials)
    proxy: ProxyRules = field(default_factory=ProxyRules)
    hosts_dir: Path | None = None
    registries_conf: Path | None = None
    offline: bool = False

    def check_online(self, url: str) -> None:
        """Raises NotFound where nobody is to be asked for what is at `url`."""
        if self.offline:
            raise NotFound(f"{shown(url)} is not in the cache; try without --offline")

    def tls_context(self, access: Access = _NOTHING_SPECIAL) -> ssl.SSLContext:
        """What to demand of servers that are reached in this way, and to show them.

        The same one for all who ask, for as long as the files behind it stay as they are: to read the
        system's authorities takes 20 to 50 ms.

        Raises:
            ConfigError: a certificate or key cannot be used.
        """
        authorities, shown = self._pem_files(access)
        return _context(authorities, shown, access.skip_verify, self.tls_version(access))

    def tls_version(self, access: Access) -> FilesVersion:
        """What changes when a file behind `tls_context` does."""
        authorities, shown = self._pem_files(access)
        system = ssl.get_default_verify_paths()
        own = (Path(path) for path in (system.cafile, system.capath) if path)
        return tuple(map(_version, (*own, *authorities, *chain.from_iterable(shown))))

    def _pem_files(self, access: Access) -> tuple[tuple[Path, ...], tuple[tuple[Path, Path], ...]]:
        """Files of authorities, and of certificates with keys."""
        authorities = (*([self.ca_file] if self.ca_file else []), *access.ca_files)
        return authorities, access.client_certs or ((self.client_cert,) if self.client_cert else ())


def _version(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file does; None while it cannot be looked at."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


@lru_cache(maxsize=16)
def _context(
    authorities: tuple[Path, ...],
    shown: tuple[tuple[Path, Path], ...],
    skip_verify: bool,
    _version: FilesVersion,
) -> ssl.SSLContext:
    context = ssl.create_default_context()
    for ca_file in authorities:
        with _certificate_errors(f"authority {ca_file}"):
            context.load_verify_locations(ca_file)
    for certificate, key in shown:
        with _certificate_errors(f"client certificate {certificate} with key {key}"):
            context.load_cert_chain(certificate, key, _no_password)
    if skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _no_password() -> str:
    """OpenSSL would ask at the terminal."""
    raise ConfigError(
        "the client certificate's key is encrypted; decrypt it (openssl pkey) into a private file"
    )


@contextmanager
def _certificate_errors(what: str) -> Iterator[None]:
    try:
        yield
    except ssl.SSLError as error:
        why = (error.reason or "not PEM").lower().replace("_", " ")
        raise ConfigError(f"{what} cannot be used: {why}; it takes PEM files that belong together") from None
    except OSError as error:
        raise ConfigError(f"{what} cannot be read: {error.strerror}") from None


class Endpoint(Struct, frozen=True):
    """One host that serves a registry's content.

    Attributes:
        registry: whose credentials to use, as it stands in references.
        base_url: scheme, host and path up to and including "/v2".
        parameters: query of every request; a mirror wants `ns`, the registry it stands for.
        capabilities: what it is to be asked for.
        headers: sent with every request to this host and to no other; they may hold secrets.
        access: what it takes to reach it.
        repository: path of the repository there; "" if it is as in references.
    """

    registry: str
    base_url: str
    parameters: str = ""
    capabilities: frozenset[Capability] = ALL_CAPABILITIES
    headers: tuple[tuple[str, str], ...] = ()
    access: Access = field(default_factory=Access)
    repository: str = ""

    def __repr__(self) -> str:
        return f"<Endpoint {self.base_url} for {self.registry}>"

    def url(self, path: str) -> str:
        """The URL of `path`, which begins with "/" and may hold a query."""
        if not self.parameters:
            return self.base_url + path
        return f"{self.base_url}{path}{'&' if '?' in path else '?'}{self.parameters}"


def api_host(registry: str) -> str:
    """The host, and perhaps port, that serves a registry."""
    return _HUB_API_HOST if registry == DOCKER_HUB else registry


def endpoint_of(registry: str, settings: SourceSettings) -> Endpoint:
    """Where a registry itself is reached."""
    host = api_host(registry)
    plain = settings.plain_http
    if plain is None:
        plain = is_loopback(origin_of(f"http://{host}").host)
    return Endpoint(registry, f"{'http' if plain else 'https'}://{host}/v2")


def user_agent() -> str:
    """What we call ourselves to servers."""
    return f"lazyfs/{__version__}"
