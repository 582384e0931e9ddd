"""Configuration: who has the last word, what is refused, and that the page about it is true."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import fields

from lazyfs.config import Config, load_config
from lazyfs.errors import ConfigError

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
KEYS = [entry.name for entry in fields(Config)]
SAMPLES: dict[str, tuple[Any, str]] = {
    "cache_dir": ("/a", "/b"),
    "platform": ("linux/arm64", "linux/s390x"),
    "plain_http": (True, "false"),
    "offline": (True, "no"),
    "read_timeout_s": (1.5, "2"),
    "stall_timeout_s": (1, "2.5"),
    "retries": (1, "2"),
    "max_connections": (1, "2"),
    "span_size_kib": (64, "128"),
    "max_layer_gib": (1, "2"),
    "max_ratio": (1, "2"),
    "free_floor_mib": (1, "2"),
    "cache_quota_mib": (1, "2"),
    "ca_file": ("/a", "/b"),
    "client_cert": ("/a", "/b"),
    "client_key": ("/a", "/b"),
    "auth_files": (["/a", "/b"], "/c:/d"),
    "http_proxy": ("http://a", "http://b"),
    "https_proxy": ("http://a", "http://b"),
    "no_proxy": ("a", "b"),
    "hosts_dir": ("/a", "/b"),
    "registries_conf": ("/a", "/b"),
    "index": ("local", "none"),
    "index_repo": ("oci:a", "oci:b"),
    "trust_index": (True, "off"),
    "require_signature": (True, "off"),
    "trusted_keys": (["/a"], "/b:/c"),
    "policy_file": ("/a", "/b"),
    "boot_pack": (False, "yes"),
    "fuse_session": ("pyfuse3", "pyfuse3"),
    "background": ("idle", "full"),
    "background_rate_kib": (0, "4096"),
    "limit_rate_kib": (64, "4096"),
    "metrics": ("9400", "127.0.0.1:9401"),
    "snapshotter_metrics": ("9402", "127.0.0.1:9403"),
    "log_level": ("error", "info"),
}


PATHS = {"cache_dir", "ca_file", "client_cert", "client_key", "hosts_dir", "registries_conf", "policy_file"}


def write(path: Path, **values: Any) -> Path:
    """A configuration file. JSON and TOML agree on all that stands here."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{key} = {_toml(value)}" for key, value in values.items()]
    path.write_text("\n".join(lines))
    return path


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value)


def expected(key: str, value: Any) -> Any:
    """What a value given in a file, or as text in the environment, comes to."""
    kind = type(getattr(Config(Path("/x")), key))
    if key in ("auth_files", "trusted_keys"):
        return tuple(map(Path, value if isinstance(value, list) else value.split(os.pathsep)))
    if key in PATHS:
        return Path(value)
    if key == "plain_http" or kind is bool:
        return value if isinstance(value, bool) else value in ("true", "yes", "on", "1")
    return kind(value)


@pytest.mark.parametrize("key", KEYS)
def test_flags_go_before_the_environment_and_that_before_the_file(key: str, tmp_path: Path) -> None:
    in_file, in_environment = SAMPLES[key]
    config = write(tmp_path / "home/.config/lazyfs/config.toml", **{key: in_file})
    home = {"HOME": str(tmp_path / "home")}
    variable = {f"LAZYFS_{key.upper()}": in_environment}
    assert getattr(load_config(home, {}), key) == expected(key, in_file)
    assert getattr(load_config(home | variable, {}), key) == expected(key, in_environment)
    assert getattr(load_config(home | variable, {key: in_file}), key) == expected(key, in_file)
    assert getattr(load_config(home | variable, {key: None}), key) == expected(key, in_environment)
    other = write(tmp_path / "other.toml")
    assert getattr(load_config(home, {}, other), key) != expected(key, in_file)
    assert getattr(load_config(home | {"LAZYFS_CONFIG": str(config)}, {}, other), key) != expected(
        key, in_file
    )
    named = {"HOME": "/nowhere", "LAZYFS_CONFIG": str(config)}
    assert getattr(load_config(named, {}), key) == expected(key, in_file)


def test_the_users_file_is_found_where_xdg_says(tmp_path: Path) -> None:
    write(tmp_path / "xdg/lazyfs/config.toml", retries=7)
    environment = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "xdg")}
    assert load_config(environment, {}).retries == 7
    assert load_config({"HOME": str(tmp_path)}, {}).retries == 5


def test_the_cache_is_where_xdg_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_config({"HOME": "/h"}, {}).cache_dir == Path("/h/.cache/lazyfs")
    assert load_config({"HOME": "/h", "XDG_CACHE_HOME": "/c"}, {}).cache_dir == Path("/c/lazyfs")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert load_config({"HOME": "/h"}, {}).cache_dir == Path("/h/.cache/lazyfs")
    assert load_config({}, {}).cache_dir == Path("/var/cache/lazyfs"), "services have no home"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ConfigError, match="no HOME"):
        load_config({}, {})
    assert load_config({}, {"cache_dir": tmp_path}).cache_dir == tmp_path


def test_what_a_daemon_is_told_holds_in_any_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = Config(Path("c"), index_repo="oci:layouts/i", trusted_keys=(Path("k.pub"),)).as_flags()
    assert told["cache_dir"] == f"{tmp_path}/c"
    assert told["index_repo"] == f"oci:{tmp_path}/layouts/i"
    assert told["trusted_keys"] == [f"{tmp_path}/k.pub"]
    repository = Config(tmp_path, index_repo="registry.example/i").as_flags()["index_repo"]
    assert repository == "docker://registry.example/i:latest"
    assert Config(tmp_path).as_flags()["index_repo"] == ""


def test_credentials_are_looked_for_where_podman_and_docker_keep_them() -> None:
    def files(**environment: str) -> list[str]:
        return [str(path) for path in load_config(environment, {"cache_dir": Path("/c")}).auth_files]

    assert files(HOME="/h", XDG_RUNTIME_DIR="/r") == [
        "/r/containers/auth.json",
        "/h/.config/containers/auth.json",
        "/h/.docker/config.json",
    ]
    assert files(HOME="/h", DOCKER_CONFIG="/d")[-1] == "/d/config.json"
    assert files(HOME="/h", REGISTRY_AUTH_FILE="/a") == ["/a"]
    assert files(HOME="/h", REGISTRY_AUTH_FILE="/a", LAZYFS_AUTH_FILES="/b") == ["/b"]


def test_proxies_are_those_of_curl_unless_it_is_said() -> None:
    def proxies(**environment: str) -> tuple[str, str, str]:
        config = load_config({"HOME": "/h", **environment}, {})
        return config.http_proxy, config.https_proxy, config.no_proxy

    assert proxies(http_proxy="a", HTTPS_PROXY="b", NO_PROXY="c") == ("a", "b", "c")
    assert proxies(HTTP_PROXY="a") == ("", "", "")  # a client could set it in a CGI program
    assert proxies(ALL_PROXY="a", LAZYFS_HTTPS_PROXY="") == ("a", "", "")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("retires = 5", "unknown key 'retires'; known are cache_dir"),
        ("retries = '5'", "retries: expected a whole number, got '5'"),
        ("retries = true", "retries: expected a whole number"),
        ("retries = 1.5", "retries: expected a whole number"),
        ("offline = 1", "offline: expected true or false"),
        ("read_timeout_s = nan", "read_timeout_s must be from"),
        ("cache_dir = 5", "cache_dir: expected a path"),
        ("cache_dir = ''", "cache_dir: expected a path"),
        ("auth_files = '/a'", "auth_files: expected a list of paths"),
        ("auth_files = [5]", "auth_files: expected a path"),
        ("log_level = 'loud'", "log_level must be"),
        ("index = 'mine'", "index must be"),
        ('metrics = "everywhere"', "metrics: expected PORT or a loopback HOST:PORT"),
        ('snapshotter_metrics = "0.0.0.0:9400"', "metrics: expected PORT or a loopback HOST:PORT"),
        ("[", "not TOML"),
        ("retries", "not TOML"),
        ("retries = 1\nretries = 2", "not TOML"),
    ],
)
def test_a_file_with_a_mistake_is_refused_in_words(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config({"HOME": "/h"}, {}, file)
    assert words in str(error.value)


def test_a_value_of_the_wrong_kind_is_refused_by_the_name_of_its_file(tmp_path: Path) -> None:
    file = write(tmp_path / ".config/lazyfs/config.toml", retries="5")
    with pytest.raises(ConfigError) as error:
        load_config({"HOME": str(tmp_path)}, {})
    assert str(error.value) == f"{file}: retries: expected a whole number, got '5'"


@pytest.mark.parametrize("key", ["retries", "offline", "read_timeout_s", "plain_http"])
def test_a_variable_with_a_mistake_is_refused_by_its_name(key: str) -> None:
    with pytest.raises(ConfigError, match=f"LAZYFS_{key.upper()}: expected"):
        load_config({"HOME": "/h", f"LAZYFS_{key.upper()}": "perhaps"}, {})


def test_a_file_that_is_named_must_be_there_and_the_usual_ones_need_not(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="absent"):
        load_config({"HOME": "/h"}, {}, tmp_path / "absent")
    with pytest.raises(ConfigError, match="Is a directory"):
        load_config({"HOME": "/h"}, {}, tmp_path)
    assert load_config({"HOME": str(tmp_path)}, {}).retries == 5


@given(st.sampled_from(KEYS), st.text(max_size=8).filter(lambda text: "\0" not in text))
def test_any_variable_gives_a_configuration_or_our_error(key: str, text: str) -> None:
    try:
        config = load_config({"HOME": "/h", f"LAZYFS_{key.upper()}": text}, {})
    except ConfigError:
        return
    assert isinstance(config.cache_dir, Path)


def test_secrets_of_proxies_do_not_show() -> None:
    config = load_config({"HOME": "/h", "https_proxy": "http://user:s3cret@p"}, {})
    assert "s3cret" in config.https_proxy
    assert "s3cret" not in repr(config)


# The page


def described() -> dict[str, str]:
    """The keys of docs/configuration.md with the defaults that stand there."""
    rows = re.findall(r"^\| `([a-z_]+)` \| ([^|]+) \|", PAGE.read_text(), re.MULTILINE)
    return {key: default.strip() for key, default in rows}


def shown(value: Any) -> str:
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return "" if value in ("", None, ()) else f"`{value}`"


def test_the_page_lists_every_key_with_its_default_and_no_other() -> None:
    page = described()
    assert list(page) == KEYS
    defaults = Config(Path("/x"))
    for key in KEYS:
        if shown(getattr(defaults, key)) and key != "cache_dir":
            assert page[key] == shown(getattr(defaults, key)), key
        else:
            assert not re.fullmatch("`[^`]*`", page[key]), f"{key} has no fixed default"


def test_the_pages_example_is_a_configuration(tmp_path: Path) -> None:
    block = PAGE.read_text().partition("```toml\n")[2].partition("```")[0]
    file = tmp_path / "config.toml"
    file.write_text(block)
    assert load_config({"HOME": "/h"}, {}, file).retries == 8
