"""Who we are to a registry: Docker's `config.json`, containers' `auth.json`, and credential helpers.

Sources: docker/cli `cli/config`, containers-auth.json(5), docker-credential-helpers. Files are read at each
look-up, so that credentials renewed meanwhile are used.
"""

import base64
import binascii
import logging
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol

import trio
from msgspec import Struct

from indexer.errors import FormatError
from lazyfs.errors import ConfigError
from lazyfs.oci.json_fields import MAX_DOCUMENT_BYTES, Fields, parse_object
from lazyfs.oci.reference import DOCKER_HUB
from lazyfs.source.auth.helper import HelperFailed, ask_helper

_log = logging.getLogger(__name__)

HUB_KEY: Final = "https://index.docker.io/v1/"
HUB_HOSTS: Final = frozenset({DOCKER_HUB, "index.docker.io", "registry-1.docker.io"})
_API_PATHS: Final = frozenset({"", "v1", "v2"})
TOKEN_USER: Final = "<token>"  # noqa: S105  # how helpers mark identity tokens


class Credentials(Struct, frozen=True):
    """What one registry knows us by. Exactly one of the ways is filled in; none of them shows in a repr.

    Attributes:
        username: with `password`: for Basic, or to get a token.
        password: goes with `username`.
        identity_token: to get tokens with (OAuth2 refresh token).
        registry_token: a bearer token, used as it is.
    """

    username: str = ""
    password: str = ""
    identity_token: str = ""
    registry_token: str = ""

    def __repr__(self) -> str:
        return "<Credentials>"


class CredentialsProvider(Protocol):
    """Looks credentials up."""

    async def lookup(
        self, registry: str, repository: str, refused: Collection[Credentials] = ()
    ) -> Credentials | None:
        """The credentials for a repository; None is to stay anonymous, or that there are no others.

        Args:
            registry: as it stands in references, "docker.io" for the Hub.
            repository: path in the registry.
            refused: what the registry has just refused.

        Raises:
            ConfigError: a file that holds credentials cannot be read.
        """


class NoCredentials:
    """Stays anonymous everywhere."""

    async def lookup(
        self,
        registry: str,  # noqa: ARG002  # a Protocol's
        repository: str,  # noqa: ARG002  # a Protocol's
        refused: Collection[Credentials] = (),  # noqa: ARG002  # a Protocol's
    ) -> Credentials | None:
        """None."""
        return None


class StaticCredentials(Struct, frozen=True):
    """The same credentials for one registry, and none for others."""

    registry: str
    credentials: Credentials

    async def lookup(
        self,
        registry: str,
        repository: str,  # noqa: ARG002  # a Protocol's
        refused: Collection[Credentials] = (),
    ) -> Credentials | None:
        """The credentials, if this is their registry."""
        return self.credentials if registry == self.registry and self.credentials not in refused else None


class CredentialsInTurn(Struct, frozen=True):
    """What the first of several has; what the next one has, if the registry refuses that."""

    providers: Sequence[CredentialsProvider]

    async def lookup(
        self, registry: str, repository: str, refused: Collection[Credentials] = ()
    ) -> Credentials | None:
        """As CredentialsProvider says."""
        for provider in self.providers:
            if found := await provider.lookup(registry, repository, refused):
                return found
        return None


class ConfigCredentials(Struct, frozen=True):
    """Credentials from configuration files; the first file that has any for a registry decides.

    Attributes:
        paths: files in Docker's or containers' form; those that do not exist are passed over.
        helper_timeout_s: how long a credential helper may take.
    """

    paths: Sequence[Path]
    helper_timeout_s: float = 30.0

    async def lookup(
        self, registry: str, repository: str, refused: Collection[Credentials] = ()
    ) -> Credentials | None:
        """As CredentialsProvider says."""
        for path in self.paths:
            config = await trio.to_thread.run_sync(read_credentials, path)
            if config is None:
                continue
            try:
                found = await self._in_file(config, registry, repository)
            except FormatError as error:
                raise ConfigError(f"credentials: {error.what}") from None
            if found:
                return found if found not in refused else None
        return None

    async def _in_file(self, config: Fields, registry: str, repository: str) -> Credentials | None:
        helper = helper_for(config, registry)
        if helper:
            try:
                answer = await ask_helper(helper, server_key(registry), self.helper_timeout_s)
            except HelperFailed as error:
                _log.warning("no credentials for %s: %s", registry, error)
                answer = None
            if answer:
                return _from_helper(*answer)
        return _in_auths(config, registry, repository)


def server_key(registry: str) -> str:
    """What helpers and Docker's files call a registry."""
    return HUB_KEY if registry in HUB_HOSTS else registry


def read_credentials(path: Path) -> Fields | None:
    """The object in a file of credentials, or None where there is no file.

    Raises:
        ConfigError: it cannot be read, or holds no object.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_DOCUMENT_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigError(f"cannot read credentials in {path}: {error.strerror}") from None
    try:
        return parse_object(data, str(path))
    except FormatError:
        raise ConfigError(f"{path}: not a JSON object with credentials; mend or remove it") from None


def helper_for(config: Fields, registry: str) -> str:
    """The suffix of the helper to ask, or ""."""
    helpers = config.child("credHelpers")
    names = HUB_HOSTS | {HUB_KEY} if registry in HUB_HOSTS else {registry}
    for name in sorted(names):
        suffix = helpers.text(name, "")
        if suffix:
            return suffix
    return config.text("credsStore", "")


def _in_auths(config: Fields, registry: str, repository: str) -> Credentials | None:
    """The most specific entry of `auths` that has something in it."""
    auths = config.child("auths")
    keys = config.keys("auths")
    for wanted in _names(registry, repository):
        for key in keys:
            found = credentials_of_entry(auths.child(key)) if normal_key(key) == wanted else None
            if found:
                return found
    return None


def _names(registry: str, repository: str) -> Iterator[str]:
    """What an entry for a repository may be called, the most specific first."""
    host = DOCKER_HUB if registry in HUB_HOSTS else registry
    parts = repository.split("/")
    for count in range(len(parts), -1, -1):
        yield "/".join([host, *parts[:count]])


def normal_key(key: str) -> str:
    """A key of `auths` without scheme and API path, under the Hub's one name."""
    scheme, mark, rest = key.rpartition("://")
    host, _, path = (rest if mark and scheme in ("http", "https") else key).partition("/")
    path = path.strip("/")
    if host in HUB_HOSTS:
        host = DOCKER_HUB
    return host if mark or path in _API_PATHS else f"{host}/{path}"


def credentials_of_entry(entry: Fields) -> Credentials | None:
    """What one entry of `auths` holds; None for the empty marker that credential stores leave.

    Raises:
        FormatError: it is no entry; what it holds is not told.
    """
    identity, registry_token = entry.text("identitytoken", ""), entry.text("registrytoken", "")
    if identity:
        return Credentials(identity_token=identity)
    if registry_token:
        if not registry_token.isascii() or not registry_token.isprintable():
            raise FormatError(f"{entry.where}: 'registrytoken' does not fit into a header")
        return Credentials(registry_token=registry_token)
    username, password = entry.text("username", ""), entry.text("password", "")
    encoded = entry.text("auth", "")
    if encoded:
        username, password = _decoded(encoded, entry.where)
    return _of_pair(username, password)


def _decoded(encoded: str, where: str) -> tuple[str, str]:
    """User and password from base64 of "user:password"; Docker pads passwords with NULs."""
    try:
        text = base64.b64decode(encoded).decode()
    except (binascii.Error, ValueError):
        raise FormatError(f"{where}: 'auth' is not base64 of user:password") from None
    username, colon, password = text.partition(":")
    if not colon:
        raise FormatError(f"{where}: 'auth' is not base64 of user:password")
    return username, password.rstrip("\0")


def _from_helper(username: str, secret: str) -> Credentials | None:
    if username == TOKEN_USER:
        return Credentials(identity_token=secret)
    return _of_pair(username, secret)


def _of_pair(username: str, secret: str) -> Credentials | None:
    """A secret without a user's name is an identity token."""
    if not secret:
        return None
    return Credentials(username, secret) if username else Credentials(identity_token=secret)
