"""Mirrors and the ways to reach registries, as containerd is told of them: a directory per host.

Source: containerd, `docs/hosts.md` and `core/remotes/docker/config/hosts.go`. A registry `host:port` has its
settings in the first of these directories that exists: `host_port_`, `host:port`, `_default`; there in
`hosts.toml`. Where there is none, Docker's certificate files count: `*.crt` of authorities, `*.cert` with
`*.key` of ours.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from msgspec.structs import replace

from lazyfs.errors import ConfigError, SourceError
from lazyfs.source.hosts.config_file import read_toml
from lazyfs.source.hosts.registries_conf import endpoints_by
from lazyfs.source.http.settings import (
    ALL_CAPABILITIES,
    Access,
    Capability,
    Endpoint,
    SourceSettings,
    api_host,
    endpoint_of,
)
from lazyfs.source.http.urls import origin_of

DEFAULT_DIRECTORY: Final = Path("/etc/containerd/certs.d")

_MAX_HOSTS: Final = 100
_HEADER: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
_OURS: Final = frozenset({"Accept-Encoding", "Connection", "Content-Length", "Range", "Transfer-Encoding"})
_DURATION: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)", re.ASCII)
_SECONDS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def endpoints_of(registry: str, settings: SourceSettings, repository: str = "") -> tuple[Endpoint, ...]:
    """Who serves a registry, in the order to be asked; the last is the registry itself, or its `server`.

    Where containerd was told nothing of it, what Podman was told counts. Blocks; for a worker thread.

    Args:
        registry: as it stands in references.
        settings: how to reach registries.
        repository: path in the registry, where it may matter.

    Raises:
        ConfigError: its settings cannot be read or make no sense.
    """
    directory = find_directory(settings.hosts_dir, registry) if settings.hosts_dir else None
    if directory is None:
        told = settings.registries_conf
        found = endpoints_by(told, registry, repository, settings) if told else None
        return found or (endpoint_of(registry, settings),)
    file = directory / "hosts.toml"
    try:
        root = read_toml(file)
    except FileNotFoundError:
        root = {}
    if root:
        return endpoints_in(root, file, registry, settings)
    access = _certificate_files(directory)
    return (replace(_home(registry, access, settings), access=access),)


def find_directory(hosts_dir: Path, registry: str) -> Path | None:
    """The directory with the settings of a registry, if there is one.

    Raises:
        ConfigError: `hosts_dir` is not the usual one and not there, or cannot be searched.
    """
    host, colon, port = registry.rpartition(":")
    names = [*([f"{host}_{port}_"] if colon and host else []), registry, "_default"]
    try:
        for name in names:
            if (hosts_dir / name).is_dir():
                return hosts_dir / name
        if hosts_dir != DEFAULT_DIRECTORY and not hosts_dir.exists():
            raise ConfigError(f"hosts_dir: {hosts_dir} does not exist; /dev/null is to have none")
    except OSError as error:
        raise ConfigError(f"hosts_dir: {hosts_dir} cannot be searched: {error.strerror}") from None
    return None


def endpoints_in(
    root: Mapping[str, Any], file: Path, registry: str, settings: SourceSettings
) -> tuple[Endpoint, ...]:
    """Who serves a registry, by the content of its `hosts.toml`.

    Keys that are not known are passed over, as containerd does: later versions have more.

    Args:
        root: the file's content.
        file: where it lies, for messages and relative paths.
        registry: as it stands in references.
        settings: how to reach the registry itself.

    Raises:
        ConfigError: a value is not of its kind.
    """
    hosts = root.get("host", {})
    if not isinstance(hosts, dict) or not all(isinstance(table, dict) for table in hosts.values()):
        raise ConfigError(f'{file}: [host."URL"] stands for tables')
    if len(hosts) > _MAX_HOSTS:
        raise ConfigError(f"{file}: {len(hosts)} hosts, more than {_MAX_HOSTS}")
    # tomllib keeps the order of the file, which is the order to ask in.
    found = [
        _Table(table, f"{file}, host {url!r}", file.parent).endpoint(url, registry)
        for url, table in hosts.items()
    ]
    table = _Table(root, str(file), file.parent)
    server = table.text("server")
    if server:
        home = table.endpoint(server, registry)
    else:
        access = table.access()
        home = replace(_home(registry, access, settings), access=access, headers=table.headers())
    while found and _is_part_of(found[-1], home):
        found.pop()  # nobody is asked twice in a row
    return (*found, home)


def _is_part_of(one: Endpoint, other: Endpoint) -> bool:
    """Whether `other` is the same host, reached in the same way, and asked for no less."""
    same = replace(one, capabilities=other.capabilities) == other
    return same and one.capabilities <= other.capabilities


def _home(registry: str, access: Access, settings: SourceSettings) -> Endpoint:
    """The registry itself. Certificates for a loopback host mean that it speaks TLS, if nothing is said."""
    wants_tls = access.ca_files or access.client_certs or access.skip_verify
    plain = False if wants_tls and settings.plain_http is None else settings.plain_http
    return endpoint_of(registry, replace(settings, plain_http=plain))


def _certificate_files(directory: Path) -> Access:
    """Docker's `certs.d`: every `*.crt` is an authority, every `X.cert` ours with the key `X.key`."""
    clients = []
    for certificate in sorted(directory.glob("*.cert")):
        key = certificate.with_suffix(".key")
        if not key.exists():
            raise ConfigError(f"{certificate}: its key {key.name} is not beside it")
        clients.append((certificate, key))
    return Access(tuple(sorted(directory.glob("*.crt"))), tuple(clients))


class _Table:
    """The keys of one host, checked.

    Args:
        values: as TOML gave them.
        where: for messages.
        base: what relative paths start from.
    """

    def __init__(self, values: Mapping[str, Any], where: str, base: Path) -> None:
        self._values = values
        self._where = where
        self._base = base

    def endpoint(self, url: str, registry: str) -> Endpoint:
        """The endpoint at `url` that stands for a registry."""
        host, base_url = self._place(url)
        is_itself = host == api_host(registry)
        return Endpoint(
            registry if is_itself else host,
            base_url,
            "" if is_itself else urlencode({"ns": registry}),
            self._capabilities(),
            self.headers(),
            self.access(),
        )

    def access(self) -> Access:
        """The TLS part."""
        return Access(
            tuple(self._paths("ca")),
            tuple(self._clients()),
            self._flag("skip_verify"),
            self._connect_timeout_s(),
        )

    def text(self, name: str) -> str:
        """A string, or ""."""
        value = self._values.get(name, "")
        if not isinstance(value, str):
            raise self._wrong(name, "a string")
        return value

    def headers(self) -> tuple[tuple[str, str], ...]:
        """Further headers, by their usual spelling; several values are one list (RFC 9110, section 5.3)."""
        table = self._values.get("header", {})
        if not isinstance(table, dict):
            raise self._wrong("header", "a table")
        return tuple(self._header(name, value) for name, value in table.items())

    def _header(self, name: str, value: Any) -> tuple[str, str]:
        """One header. Values may be secret, so messages name only the header."""
        spelt = "-".join(part.capitalize() for part in name.split("-"))
        if not _HEADER.fullmatch(name) or spelt in _OURS:
            raise ConfigError(f"{self._where}: {name[:100]!r} is no header that can be set")
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(one, str) and one.isascii() and one.isprintable() for one in values):
            raise ConfigError(f"{self._where}: header {spelt!r} is not a string of ASCII, or a list of them")
        return spelt, ", ".join(values)

    def _place(self, text: str) -> tuple[str, str]:
        """Host with port as written, and the URL up to and including the API's root."""
        scheme, _, rest = (text if "://" in text else f"https://{text}").partition("://")
        host, _, path = rest.partition("/")
        host = api_host(host)
        try:
            origin_of(f"{scheme}://{host}")
        except SourceError as error:
            raise ConfigError(f"{self._where}: {error}") from None
        if set("@?#") & set(rest):
            raise ConfigError(f"{self._where}: a host is [SCHEME://]HOST[:PORT][/PATH] and nothing more")
        root = "".join(f"/{part}" for part in path.split("/") if part not in ("", "."))
        if not self._flag("override_path") and not root.endswith("/v2"):
            root += "/v2"
        return host, f"{scheme}://{host}{root}"

    def _capabilities(self) -> frozenset[Capability]:
        names = self._texts("capabilities")
        try:
            return frozenset(Capability(name.lower()) for name in names) or ALL_CAPABILITIES
        except ValueError:
            known = ", ".join(Capability)
            raise self._wrong("capabilities", f"a list of {known}") from None

    def _clients(self) -> Iterator[tuple[Path, Path]]:
        """A file, files, or pairs of certificate and key; a file alone holds both."""
        value = self._values.get("client", [])
        for entry in value if isinstance(value, list) else [value]:
            pair = entry if isinstance(entry, list) else [entry, entry]
            if len(pair) != 2 or not all(isinstance(part, str) and part for part in pair):
                raise self._wrong("client", "a file, or a list of files or of [certificate, key]")
            yield self._base / pair[0], self._base / pair[1]

    def _paths(self, name: str) -> Iterator[Path]:
        return (self._base / text for text in self._texts(name))

    def _texts(self, name: str) -> list[str]:
        value = self._values.get(name, [])
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(entry, str) and entry for entry in values):
            raise self._wrong(name, "a string, or a list of strings")
        return values

    def _flag(self, name: str) -> bool:
        value = self._values.get(name, False)
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false")
        return value

    def _connect_timeout_s(self) -> float | None:
        """`dial_timeout`, a duration as Go writes it; 0 is not to say any."""
        text = self.text("dial_timeout")
        parts = _DURATION.findall(text)
        if text not in ("", "0") and (not parts or "".join(map("".join, parts)) != text):
            raise self._wrong("dial_timeout", "a duration like 500ms or 1m30s")
        return sum(float(number) * _SECONDS[unit] for number, unit in parts) or None

    def _wrong(self, name: str, wanted: str) -> ConfigError:
        return ConfigError(f"{self._where}: {name!r} is not {wanted}")
