"""Configuration: defaults, then the file, then the environment, then flags. A misspelt key is an error.

The file is TOML: /etc/lazyfs/config.toml, then $XDG_CONFIG_HOME/lazyfs/config.toml over it; or the one that
--config or LAZYFS_CONFIG names alone. Every key can be given as LAZYFS_KEY in the environment, where an empty
value counts for strings only.
"""

import ipaddress
import os
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import fields, replace

from lazyfs.errors import ConfigError
from lazyfs.oci.image_name import anchored, parse_image

_SYSTEM_FILE: Final = Path("/etc/lazyfs/config.toml")
_SYSTEM_CACHE: Final = Path("/var/cache/lazyfs")
_BOUNDS: Final = {
    "read_timeout_s": (0.001, 1e6),
    "stall_timeout_s": (0.001, 1e6),
    "retries": (0, 1000),
    "max_connections": (1, 1024),
    "span_size_kib": (64, 64 << 10),
    "max_layer_gib": (1, 1 << 20),
    "max_ratio": (1, 1 << 20),
    "free_floor_mib": (0, 1 << 30),
    "background_rate_kib": (0, 1 << 30),
    "limit_rate_kib": (0, 1 << 30),
    "cache_quota_mib": (0, 1 << 30),
}
_TRUE, _FALSE = frozenset({"1", "true", "yes", "on"}), frozenset({"0", "false", "no", "off"})


class Config(Struct, frozen=True):
    """All settings, each with its default.

    Attributes:
        cache_dir: where everything is kept.
        platform: which image of an index, as os/architecture[/variant]; "" is this machine's.
        plain_http: whether to talk HTTP to registries; if it is not said, to loopback only.
        offline: ask no registry.
        read_timeout_s: seconds after which a read that waits for the network fails.
        stall_timeout_s: seconds without a byte after which a request is tried anew.
        retries: attempts after a failed one.
        max_connections: connections to registries at once.
        span_size_kib: uncompressed KiB per span that indexing aims at.
        max_layer_gib: the largest uncompressed layer that is accepted.
        max_ratio: the largest ratio of uncompressed to compressed bytes of layers above 128 MiB.
        free_floor_mib: so much of the disk is left free, by evicting, and then by caching nothing.
        cache_quota_mib: how much disk the cache may take; 0 for any amount.
        ca_file: certificates to trust besides the system's.
        client_cert: a client's certificate, PEM; its key may follow in the same file.
        client_key: the certificate's key, where it lies apart.
        auth_files: credentials files in docker's or containers' format, looked at in order; empty looks where
            docker and podman do.
        http_proxy: proxy for http URLs; if it is not said, what the environment says as for curl(1).
        https_proxy: proxy for https URLs.
        no_proxy: hosts to reach without one, separated by commas.
        hosts_dir: containerd's directory of mirrors, `host[_port_]/hosts.toml`; /dev/null is to have none.
        registries_conf: Podman's file of mirrors, for registries of which `hosts_dir` says nothing.
        index: where indexes may come from: auto, local, registry or none
            (`lazyfs.image.indexes.indexing.IndexMode`).
        index_repo: a repository or `oci:DIR` where indexes are looked for first, and pushed to; "" is beside
            the image.
        trust_index: use every index that is found, also for images named by digest.
        require_signature: refuse images, and indexes, that none of the trusted keys signed.
        trusted_keys: files with public keys in PEM, as cosign writes them.
        policy_file: what is demanded of the images below which prefix, in TOML or JSON (docs/trust.md).
        fuse_session: who answers the kernel for `lazyfs mount --driver erofs`: lazyfs itself (own), or
            libfuse (pyfuse3), which takes longer.
        boot_pack: stream what starts of an image read, where that was recorded and published.
        background: what is fetched although nobody reads it: nothing (off), the rest of each layer while
            nobody waits for anything (idle), or at any time (full).
        background_rate_kib: KiB a second that the background may fetch; 0 is any number.
        limit_rate_kib: KiB a second of content that all together may fetch, readers too; 0 is any number.
        metrics: where daemons tell their counts to Prometheus: PORT or a loopback HOST:PORT; "" is nowhere.
        snapshotter_metrics: the same, where the snapshotter tells its own.
        log_level: debug, info, warning or error.
    """

    cache_dir: Path
    platform: str = ""
    plain_http: bool | None = None
    offline: bool = False
    read_timeout_s: float = 60.0
    stall_timeout_s: float = 10.0
    retries: int = 5
    max_connections: int = 16
    span_size_kib: int = 384
    max_layer_gib: int = 1024
    max_ratio: int = 200
    free_floor_mib: int = 256
    cache_quota_mib: int = 0
    ca_file: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None
    auth_files: tuple[Path, ...] = ()
    http_proxy: str = ""
    https_proxy: str = ""
    no_proxy: str = ""
    hosts_dir: Path = Path("/etc/containerd/certs.d")
    registries_conf: Path | None = None
    index: str = "auto"
    index_repo: str = ""
    trust_index: bool = False
    require_signature: bool = False
    trusted_keys: tuple[Path, ...] = ()
    policy_file: Path | None = None
    fuse_session: str = "own"
    boot_pack: bool = True
    background: str = "off"
    background_rate_kib: int = 8192
    limit_rate_kib: int = 0
    metrics: str = ""
    snapshotter_metrics: str = ""
    log_level: str = "warning"

    def __post_init__(self) -> None:
        for name, (least, most) in _BOUNDS.items():
            if not least <= getattr(self, name) <= most:  # nor is NaN
                raise ConfigError(f"{name} must be from {least} to {most}, not {getattr(self, name)}")
        if self.index not in {"auto", "local", "registry", "none"}:
            raise ConfigError(f"index must be auto, local, registry or none, not {self.index!r}")
        if self.fuse_session not in {"own", "pyfuse3"}:
            raise ConfigError(f"fuse_session must be own or pyfuse3, not {self.fuse_session!r}")
        if self.background not in {"off", "idle", "full"}:
            raise ConfigError(f"background must be off, idle or full, not {self.background!r}")
        if self.log_level not in {"debug", "info", "warning", "error"}:
            raise ConfigError(f"log_level must be debug, info, warning or error, not {self.log_level!r}")
        for address in filter(None, (self.metrics, self.snapshotter_metrics)):
            parse_address(address)  # now, not when something is mounted already

    def __repr__(self) -> str:
        return f"<Config of {self.cache_dir}>"  # proxies' URLs may hold passwords

    def as_flags(self) -> dict[str, Any]:
        """The same as `load_config` takes it from the command line, fit for JSON, from any directory.

        Raises:
            BadReference: `index_repo` names no place.
        """
        values = {name: getattr(self, name) for name in _NAMES}
        if self.index_repo:
            values["index_repo"] = str(anchored(parse_image(self.index_repo)))
        values |= {name: [str(path.absolute()) for path in values[name]] for name in _PATH_LISTS}
        told = {name: value for name, value in values.items() if value is not None}
        return {name: str(v.absolute()) if isinstance(v, Path) else v for name, v in told.items()}


def parse_address(text: str) -> tuple[str, int]:
    """(host, port) of "PORT", "HOST:PORT" or "[HOST]:PORT"; the host is a loopback address.

    Raises:
        ConfigError: it is another address, or none.
    """
    host, _, port = text.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not (loopback and port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise ConfigError(f"metrics: expected PORT or a loopback HOST:PORT, got {text!r}")
    return host, int(port)


def load_config(
    environment: Mapping[str, str], flags: Mapping[str, Any], config_file: Path | None = None
) -> Config:
    """The configuration that holds for one run.

    Args:
        environment: the process's environment.
        flags: values given on the command line; None means not given.
        config_file: the file to use instead of the usual ones.

    Raises:
        ConfigError: a file cannot be read or parsed, or a key or value is wrong.
    """
    values: dict[str, Any] = {}
    for path, must_exist in _files(environment, config_file):
        values.update(_read_file(path, must_exist=must_exist))
    for name in _NAMES:
        text = environment.get(f"LAZYFS_{name.upper()}")
        if text or (text is not None and _TYPES[name] is str):
            values[name] = _from_text(name, text)
    values.update({name: value for name, value in flags.items() if value is not None})
    for name, value in _usual_proxies(environment).items():
        values.setdefault(name, value)
    if "cache_dir" not in values:
        values["cache_dir"] = _default_cache(environment)
    config = Config(**{name: _typed(name, value) for name, value in values.items()})
    if not config.auth_files:
        return replace(config, auth_files=tuple(_usual_auth_files(environment)))
    return config


def _files(environment: Mapping[str, str], config_file: Path | None) -> Iterator[tuple[Path, bool]]:
    named = config_file or (Path(environment["LAZYFS_CONFIG"]) if environment.get("LAZYFS_CONFIG") else None)
    if named is not None:
        yield named, True
        return
    yield _SYSTEM_FILE, False
    home = _xdg(environment, "XDG_CONFIG_HOME", ".config")
    if home is not None:
        yield home / "lazyfs" / "config.toml", False


def _xdg(environment: Mapping[str, str], variable: str, below_home: str) -> Path | None:
    """A base directory; relative ones are ignored (XDG Base Directory Specification, "Basics")."""
    if environment.get(variable, "").startswith("/"):
        return Path(environment[variable])
    return Path(environment["HOME"]) / below_home if environment.get("HOME") else None


def _default_cache(environment: Mapping[str, str]) -> Path:
    cache = _xdg(environment, "XDG_CACHE_HOME", ".cache")
    if cache is None and os.geteuid() == 0:  # as services have it
        return _SYSTEM_CACHE
    if cache is None:
        raise ConfigError("no HOME to keep a cache in; give --cache-dir or LAZYFS_CACHE_DIR")
    return cache / "lazyfs"


def _usual_proxies(environment: Mapping[str, str]) -> dict[str, str]:
    """What curl(1) would use. HTTP_PROXY in capitals is left alone: in a CGI program a client can set it."""

    def value(*names: str) -> str:
        return next((environment[name] for name in names if environment.get(name)), "")

    return {
        "http_proxy": value("http_proxy", "all_proxy", "ALL_PROXY"),
        "https_proxy": value("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"),
        "no_proxy": value("no_proxy", "NO_PROXY"),
    }


def _usual_auth_files(environment: Mapping[str, str]) -> Iterator[Path]:
    """Where podman and docker keep credentials, in podman's order (containers-auth.json(5))."""
    if environment.get("REGISTRY_AUTH_FILE"):
        yield Path(environment["REGISTRY_AUTH_FILE"])
        return
    runtime = environment.get("XDG_RUNTIME_DIR") or (f"/run/containers/{os.getuid()}")
    yield Path(runtime) / ("containers/auth.json" if environment.get("XDG_RUNTIME_DIR") else "auth.json")
    home = _xdg(environment, "XDG_CONFIG_HOME", ".config")
    if home is not None:
        yield home / "containers" / "auth.json"
    if environment.get("DOCKER_CONFIG"):
        yield Path(environment["DOCKER_CONFIG"]) / "config.json"
    elif environment.get("HOME"):
        yield Path(environment["HOME"]) / ".docker" / "config.json"


def _read_file(path: Path, *, must_exist: bool) -> dict[str, Any]:
    try:
        data = path.read_bytes()
    except OSError as error:
        if must_exist or not isinstance(error, FileNotFoundError):
            raise ConfigError(f"the configuration file {path} cannot be read: {error.strerror}") from error
        return {}
    try:
        values = tomllib.loads(data.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    for name in values:
        if name not in _NAMES:
            raise ConfigError(f"{path}: unknown key {name!r}; known are {', '.join(_NAMES)}")
    try:
        return {name: _typed(name, value) for name, value in values.items()}
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


_PATH_LISTS: Final = frozenset({"auth_files", "trusted_keys"})
_NAMES: Final = tuple(f.name for f in fields(Config))
_TYPES: Final = {f.name: bool if f.type == bool | None else f.type for f in fields(Config)}
_WORDS: Final = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}


def _from_text(name: str, text: str) -> Any:
    kind = _TYPES[name]
    if kind is bool and text.lower() in _TRUE | _FALSE:
        return text.lower() in _TRUE
    if kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    if kind in (bool, int, float):
        raise ConfigError(f"LAZYFS_{name.upper()}: expected {_WORDS[kind]}, got {text!r}")
    return list(filter(None, text.split(os.pathsep))) if name in _PATH_LISTS else text


def _typed(name: str, value: Any) -> Any:
    """A value as the field's type wants it; numbers and booleans are never taken for each other."""
    kind = _TYPES[name]
    if name in _PATH_LISTS:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{name}: expected a list of paths, got {value!r}")
        return tuple(_path(name, item) for item in value)
    if kind in (bool, int, float, str):
        if type(value) is kind or (kind is float and type(value) is int):
            with suppress(OverflowError):  # of an integer that no float is as large as
                return kind(value)
        raise ConfigError(f"{name}: expected {_WORDS[kind]}, got {value!r}")
    return _path(name, value)


def _path(name: str, value: Any) -> Path:
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise ConfigError(f"{name}: expected a path, got {value!r}")
    try:
        return Path(value).expanduser()
    except RuntimeError:
        raise ConfigError(f"{name}: nobody has the home directory of {value!r}") from None
