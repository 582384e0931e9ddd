"""Mirrors by containerd's `hosts.toml`: which file counts, and what it says."""

import json
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.config import Config
from lazyfs.errors import ConfigError
from lazyfs.source.hosts.config_file import parse_toml
from lazyfs.source.hosts.hosts_config import DEFAULT_DIRECTORY, endpoints_in, endpoints_of, find_directory
from lazyfs.source.http.settings import ALL_CAPABILITIES, Access, Capability, Endpoint, SourceSettings

FILE = Path("/certs.d/registry.example/hosts.toml")


def parsed(text: str, registry: str = "registry.example") -> tuple[Endpoint, ...]:
    return endpoints_in(parse_toml(text.encode(), FILE), FILE, registry, SourceSettings())


def test_hosts_stand_in_the_order_of_the_file_and_the_server_last() -> None:
    text = """
    server = "https://upstream.example"
    [host."https://z.example"]
    [host."http://a.example:5000"]
    [host."bare.example/"]
      [host."http://a.example:5000".header]
        x-one = "1"
    """
    assert [endpoint.base_url for endpoint in parsed(text)] == [
        "https://z.example/v2",
        "http://a.example:5000/v2",
        "https://bare.example/v2",
        "https://upstream.example/v2",
    ]


def test_a_mirror_that_is_the_registry_itself_is_not_asked_twice() -> None:
    itself = '"http://reg.example:5000"'
    for root, others in (
        (f"server = {itself}\n[host.{itself}]", []),
        (f"server = {itself}\n[host.{itself}]\ncapabilities = ['pull']", []),
        (f"server = {itself}\n[host.'http://m']\n[host.{itself}]", ["http://m/v2"]),
        (
            f"server = {itself}\n[host.{itself}]\n[host.'http://m']",
            ["http://reg.example:5000/v2", "http://m/v2"],
        ),
        (f"server = {itself}\n[host.{itself}]\nca = 'a.crt'", ["http://reg.example:5000/v2"]),
        (f"server = {itself}\ncapabilities = ['pull']\n[host.{itself}]", ["http://reg.example:5000/v2"]),
    ):
        found = [endpoint.base_url for endpoint in parsed(root, "reg.example:5000")]
        assert found == [*others, "http://reg.example:5000/v2"], root


@pytest.mark.parametrize(
    ("registry", "server", "url"),
    [
        ("registry.example", "", "https://registry.example/v2"),
        ("docker.io", "", "https://registry-1.docker.io/v2"),
        ("docker.io", "https://registry-1.docker.io", "https://registry-1.docker.io/v2"),
        ("docker.io", "https://docker.io", "https://registry-1.docker.io/v2"),
        ("127.0.0.1:5000", "", "http://127.0.0.1:5000/v2"),
        ("127.0.0.1:5000", "https://127.0.0.1:5000", "https://127.0.0.1:5000/v2"),
    ],
)
def test_the_registry_itself_is_no_proxy_and_keeps_its_credentials(
    registry: str, server: str, url: str
) -> None:
    said = f'server = "{server}"\n' if server else ""
    mirror, home = parsed(f'{said}[host."http://mirror"]', registry)
    assert (home.registry, home.base_url, home.parameters) == (registry, url, "")
    assert mirror.registry == "mirror"
    assert mirror.url("/x?y=1") == f"http://mirror/v2/x?y=1&ns={registry.replace(':', '%3A')}"


@pytest.mark.parametrize(
    ("url", "override", "root"),
    [
        ("https://m/a/b", False, "https://m/a/b/v2"),
        ("https://m//a/./b/", False, "https://m/a/b/v2"),
        ("https://m/v2", False, "https://m/v2"),
        ("https://m/v2/proxy", False, "https://m/v2/proxy/v2"),
        ("https://m/v2/proxy", True, "https://m/v2/proxy"),
        ("https://m", True, "https://m"),
        ("https://[::1]:5000/x", False, "https://[::1]:5000/x/v2"),
    ],
)
def test_the_root_of_the_api_ends_in_v2_unless_it_is_overridden(url: str, override: bool, root: str) -> None:
    text = f'[host."{url}"]\noverride_path = {str(override).lower()}'
    assert parsed(text)[0].base_url == root


def test_every_key_of_a_host_counts() -> None:
    text = """
    ca = "root.crt"
    [host."https://m"]
      capabilities = ["Pull", "resolve"]
      ca = ["a.crt", "/abs/b.crt"]
      client = [["c.crt", "c.key"], "both.pem"]
      skip_verify = true
      dial_timeout = "1m1.5s200ms"
      later_invention = 1
      [host."https://m".header]
        authorization = "Basic s3cret"
        X-LIST = ["a", "b"]
    """
    mirror, home = parsed(text)
    here = FILE.parent
    assert mirror.capabilities == {Capability.PULL, Capability.RESOLVE}
    assert mirror.access == Access(
        (here / "a.crt", Path("/abs/b.crt")),
        ((here / "c.crt", here / "c.key"), (here / "both.pem", here / "both.pem")),
        skip_verify=True,
        connect_timeout_s=61.7,
    )
    assert mirror.headers == (("Authorization", "Basic s3cret"), ("X-List", "a, b"))
    assert "s3cret" not in repr(mirror)
    assert home == Endpoint(
        "registry.example", "https://registry.example/v2", access=Access((here / "root.crt",))
    )
    assert home.capabilities == ALL_CAPABILITIES


BAD = {
    "[": "not TOML",
    "host = 1": "stands for tables",
    'host."https://m" = 1': "stands for tables",
    "server = 1": "'server' is not a string",
    'server = "ftp://x"': "not an http or https URL",
    'server = "https://"': "not an http or https URL",
    'server = "https://user:s3cret@m"': "and nothing more",
    'server = "https://m/?x"': "and nothing more",
    'capabilities = ["fly"]\nserver = "m"': "'capabilities' is not a list of pull, resolve, push, referrers",
    "ca = 1": "'ca' is not a string",
    "ca = ['']": "'ca' is not a string",
    "client = [['a']]": "'client' is not a file",
    "client = [1]": "'client' is not a file",
    "skip_verify = 'yes'": "'skip_verify' is not true or false",
    "dial_timeout = 'soon'": "'dial_timeout' is not a duration",
    "dial_timeout = '5'": "'dial_timeout' is not a duration",
    "header = 1": "'header' is not a table",
    "header.range = 's3cret'": "'range' is no header",
    "header.'a b' = 's3cret'": "'a b' is no header",
    'header.x = ["s3cret\\r\\n", "s3cret"]': "is not a string of ASCII",
    'header.x = "s3cret\\n"': "is not a string of ASCII",
    "header.x = 5": "is not a string of ASCII",
    'override_path = 1\nserver = "m"': "'override_path' is not true or false",
    "\n".join(f'[host."{n}.example"]' for n in range(101)): "more than 100",
}


@pytest.mark.parametrize("text", BAD)
def test_a_value_of_the_wrong_kind_is_a_configuration_error_that_names_it(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        parsed(text)
    assert BAD[text] in str(error.value)
    assert str(FILE) in str(error.value)
    assert "s3cret" not in str(error.value)


VALUES = st.recursive(
    st.booleans()
    | st.integers(0, 9)
    | st.text(string.printable, max_size=8)
    | st.sampled_from(["pull", "1s"]),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)
KEYS = st.sampled_from(
    ["server", "capabilities", "ca", "client", "skip_verify", "header.x", "override_path", "dial_timeout"]
)


@given(st.dictionaries(KEYS, VALUES, max_size=4), st.text(string.printable, max_size=12))
def test_any_values_give_endpoints_or_our_error(values: dict[str, Any], url: str) -> None:
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    text = "\n".join([*lines, f"[host.{json.dumps(url)}]", *lines])
    try:
        found = parsed(text)
    except ConfigError:
        return
    assert len(found) == 2
    for endpoint in found:
        assert endpoint.base_url.startswith(("http://", "https://"))


def test_the_most_telling_directory_is_taken(tmp_path: Path) -> None:
    assert find_directory(tmp_path, "h:5000") is None
    for name in ("_default", "h:5000", "h_5000_"):
        (tmp_path / name).mkdir()
        assert find_directory(tmp_path, "h:5000") == tmp_path / name
    assert find_directory(tmp_path, "h") == tmp_path / "_default"
    assert find_directory(tmp_path, "[::1]:5000") == tmp_path / "_default"
    (tmp_path / "[::1]_5000_").mkdir()
    assert find_directory(tmp_path, "[::1]:5000") == tmp_path / "[::1]_5000_"


def test_no_directory_is_no_mirror_but_a_wrong_one_is_an_error(tmp_path: Path) -> None:
    assert find_directory(Path("/dev/null"), "h") is None
    with pytest.raises(ConfigError, match="does not exist"):
        find_directory(tmp_path / "absent", "h")
    (tmp_path / "h" / "hosts.toml").mkdir(parents=True)
    with pytest.raises(ConfigError, match="Is a directory"):
        endpoints_of("h", SourceSettings(hosts_dir=tmp_path))
    assert Config(Path("/c")).hosts_dir == DEFAULT_DIRECTORY


def test_certificate_files_of_docker_count_where_there_is_no_hosts_file(tmp_path: Path) -> None:
    settings = SourceSettings(hosts_dir=tmp_path)
    directory = tmp_path / "127.0.0.1:5000"
    directory.mkdir()
    assert endpoints_of("127.0.0.1:5000", settings)[0].base_url == "http://127.0.0.1:5000/v2"
    for name in ("b.crt", "a.crt", "client.cert", "client.key"):
        (directory / name).touch()
    (endpoint,) = endpoints_of("127.0.0.1:5000", settings)
    assert endpoint.base_url == "https://127.0.0.1:5000/v2"
    assert endpoint.access == Access(
        (directory / "a.crt", directory / "b.crt"), ((directory / "client.cert", directory / "client.key"),)
    )
    (directory / "client.key").unlink()
    with pytest.raises(ConfigError, match=r"its key client\.key"):
        endpoints_of("127.0.0.1:5000", settings)
