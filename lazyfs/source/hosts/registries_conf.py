"""Mirrors and other names of registries, as Podman and CRI-O are told of them.

Source: containers-registries.conf(5), version 2, and what containers/image makes of it: the `[[registry]]`
with the longest prefix of an image's name counts; its mirrors are asked in order, then its location. Drop-ins
beside the file, `FILE.d/*.conf`, replace tables of the same prefix. Short names and `credential-helpers` do
not count.
"""

import socket
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from indexer.errors import FormatError
from lazyfs.errors import BadReference, ConfigError
from lazyfs.oci.json_fields import Fields
from lazyfs.oci.reference import parse_reference
from lazyfs.source.hosts.config_file import read_toml
from lazyfs.source.http.settings import Access, Capability, Endpoint, SourceSettings, api_host, endpoint_of

_MAX_RULES: Final = 10_000
_MAX_MIRRORS: Final = 100
_PROBE_S: Final = 3.0
_TLS_PORT: Final = 443
_PULLS: Final = {
    "": frozenset(Capability) - {Capability.PUSH},
    "all": frozenset(Capability) - {Capability.PUSH},
    "digest-only": frozenset({Capability.PULL, Capability.REFERRERS}),
    "tag-only": frozenset({Capability.RESOLVE, Capability.REFERRERS}),
}
"""What a mirror is asked for, by its `pull-from-mirror`."""


class _Location(Struct, frozen=True):
    """Where names of a prefix are.

    Attributes:
        stem: what stands for the prefix: a host, and perhaps the beginning of a path.
        insecure: whether its certificate does not matter, nor whether it has one.
        capabilities: what it is asked for.
    """

    stem: str
    insecure: bool
    capabilities: frozenset[Capability]


class _Rule(Struct, frozen=True):
    """One `[[registry]]`.

    Attributes:
        prefix: of names, in whole components; "*.DOMAIN" is any host below a domain.
        mirrors: asked first, in order.
        home: the location itself; its stem is "" where the name stays as it is.
        blocked: why it must not be asked; "" if it may.
    """

    prefix: str
    mirrors: tuple[_Location, ...]
    home: _Location
    blocked: str

    def length_in(self, name: str) -> int:
        """How much of a name the prefix stands for; 0 if it is another's."""
        host = name.partition("/")[0]
        if self.prefix.startswith("*."):
            domain = host.partition(":")[0]
            return len(domain) if domain.endswith(self.prefix[1:]) else 0
        whole = name == self.prefix or name.startswith(f"{self.prefix}/")
        return len(self.prefix) if whole else 0


def endpoints_by(
    file: Path, registry: str, repository: str, settings: SourceSettings
) -> tuple[Endpoint, ...] | None:
    """Who serves a repository, in the order to be asked; None if the file has nothing about it.

    Blocks; for a worker thread. What is insecure is asked whether it speaks TLS.

    Args:
        file: the configuration file.
        registry: as it stands in references.
        repository: path in the registry; "" for the registry as a whole.
        settings: how to reach registries.

    Raises:
        ConfigError: the file or a drop-in cannot be read or makes no sense, or the registry is blocked.
    """
    name = f"{registry}/{repository}" if repository else registry
    rules = [rule for rule in _rules(file).values() if rule.length_in(name)]
    if not rules:
        return None
    rule = max(rules, key=lambda rule: (not rule.prefix.startswith("*."), len(rule.prefix)))
    if rule.blocked:
        raise ConfigError(rule.blocked)
    rest = name[rule.length_in(name) :]
    mirrors = (_endpoint(mirror, f"{mirror.stem}{rest}", settings, file) for mirror in rule.mirrors)
    home = _endpoint(rule.home, f"{rule.home.stem}{rest}" if rule.home.stem else name, settings, file)
    return (*mirrors, home)


def _endpoint(location: _Location, name: str, settings: SourceSettings, file: Path) -> Endpoint:
    host, _, repository = name.partition("/")
    try:
        parse_reference(f"{host}/{repository or 'any'}")
    except BadReference as error:
        raise ConfigError(f"{file}: a location that is none: {error}") from None
    plain = settings.plain_http
    if plain is None and location.insecure:
        plain = not _may_speak_tls(api_host(host))
    found = endpoint_of(host, replace(settings, plain_http=plain))
    access = Access(skip_verify=location.insecure)
    return replace(found, capabilities=location.capabilities, access=access, repository=repository)


def _may_speak_tls(host: str) -> bool:
    """Whether a host speaks TLS, or cannot be asked: then whoever really asks is told why."""
    name, colon, port = host.rpartition(":") if not host.endswith("]") else (host, "", "")
    address = (name.strip("[]"), int(port)) if colon else (host.strip("[]"), _TLS_PORT)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection(address, _PROBE_S) as connection:
            context.wrap_socket(connection, server_hostname=address[0]).close()
    except ssl.SSLError:
        return False
    except (OSError, ValueError):  # also of a name that can be nobody's
        return True
    return True


def _rules(file: Path) -> dict[str, _Rule]:
    """By prefix."""
    found: dict[str, _Rule] = {}
    try:
        found_there = sorted(file.with_name(f"{file.name}.d").glob("*.conf"))
        drop_ins = [path for path in found_there if not path.is_dir()]
    except OSError as error:
        raise ConfigError(f"{file}.d: cannot be read: {error.strerror}") from None
    for path in (file, *drop_ins):
        found |= {rule.prefix: rule for rule in reversed(_rules_in(path))}
    return found


def _rules_in(path: Path) -> Sequence[_Rule]:
    """In the order of the file; of the same prefix, the first counts."""
    try:
        root = read_toml(path)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if "registries" in root:
        raise ConfigError(f"{path}: [registries] is version 1 of the format; [[registry]] is read")
    try:
        return [_rule(table, path) for table in Fields(root, str(path)).children("registry", _MAX_RULES)]
    except FormatError as error:
        raise ConfigError(error.what) from None


def _rule(table: Fields, path: Path) -> _Rule:
    location = _stem(table, "location")
    prefix = _stem(table, "prefix") or location
    where = f"{path}, registry {prefix!r}"
    if not prefix or not (location or prefix.startswith("*.")):
        raise ConfigError(f"{where}: 'location' is missing")
    if prefix.startswith("*.") and set("/@:") & set(prefix):
        raise ConfigError(f"{where}: with a wildcard, 'prefix' is *.DOMAIN")
    digests = table.flag("mirror-by-digest-only")
    mirrors = tuple(_mirror(mirror, by_digest=digests) for mirror in table.children("mirror", _MAX_MIRRORS))
    home = _Location(location, table.flag("insecure"), frozenset(Capability))
    return _Rule(prefix, mirrors, home, f"{where}: is blocked" if table.flag("blocked") else "")


def _mirror(table: Fields, *, by_digest: bool) -> _Location:
    stem = _stem(table, "location")
    if not stem:
        raise ConfigError(f"{table.where}: 'location' is missing")
    pulls = table.text("pull-from-mirror", "") or ("digest-only" if by_digest else "")
    if pulls not in _PULLS:
        known = ", ".join(filter(None, _PULLS))
        raise ConfigError(f"{table.where}: 'pull-from-mirror' is not one of {known}")
    return _Location(stem, table.flag("insecure"), _PULLS[pulls])


def _stem(table: Fields, key: str) -> str:
    text = table.text(key, "")
    if "://" in text:
        raise ConfigError(f"{table.where}: {key!r} is HOST[:PORT][/PATH], without a scheme")
    return text.rstrip("/")
