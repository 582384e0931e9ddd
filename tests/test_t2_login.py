"""Logging in: the registry judges, and what is kept is found again, with everything else left as it was."""

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from lazyfs.errors import BadReference, ConfigError, SourceError, Unauthorized, Unreachable
from lazyfs.source.auth.credentials import ConfigCredentials, Credentials
from lazyfs.source.auth.store import Kept, forget_login, keep_login
from lazyfs.source.registry.login import Login, parse_registry, try_login
from tests.support.credential_helper import Vault, install_helper
from tests.support.registry import Registry
from tests.support.registry_auth import Access
from tests.support.registry_client import SETTINGS
from tests.support.registry_faults import Status

HUB = "https://index.docker.io/v1/"
ALICE = Credentials("alice", "s3cret:pw")
USERS = {"alice": "s3cret:pw"}


@pytest.mark.parametrize(
    ("text", "registry"),
    [
        ("ghcr.io", "ghcr.io"),
        ("localhost", "localhost"),
        ("127.0.0.1:5000", "127.0.0.1:5000"),
        ("https://ghcr.io/v2/", "ghcr.io"),
        ("http://reg.example:5000", "reg.example:5000"),
        ("docker.io", "docker.io"),
        (HUB, "docker.io"),
        ("index.docker.io", "docker.io"),
    ],
)
def test_a_registry_is_named_like_in_references_or_by_a_url(text: str, registry: str) -> None:
    assert parse_registry(text) == registry


@pytest.mark.parametrize(
    "text", ["", "alice", "ghcr.io/alice", "https://ghcr.io/alice/app", "a b.c", "x:y:z"]
)
def test_what_is_no_registry_is_refused(text: str) -> None:
    with pytest.raises(BadReference):
        parse_registry(text)


@pytest.mark.parametrize("mode", ["basic", "token"])
async def test_the_registry_judges(mode: str) -> None:
    with Registry(access=Access(mode=mode, users=USERS)) as registry:
        assert await try_login(registry.host, ALICE, SETTINGS) == Login(ALICE, checked=True)
        with pytest.raises(Unauthorized) as error:
            await try_login(registry.host, Credentials("alice", "s3cret:wrong"), SETTINGS)
        assert "s3cret" not in str(error.value)
        assert {seen.kind for seen in registry.seen} <= {"base", "token"}
        assert not any("s3cret" in seen.target for seen in registry.seen)


async def test_a_registry_that_is_open_to_all_judges_nobody() -> None:
    with Registry() as registry:
        assert await try_login(registry.host, ALICE, SETTINGS) == Login(ALICE, checked=False)


async def test_an_identity_token_is_kept_instead_of_the_password() -> None:
    with Registry(access=Access(mode="token", users=USERS, offers_identity="refresh-s3cret")) as registry:
        login = await try_login(registry.host, ALICE, SETTINGS)
    assert login.credentials == Credentials("alice", identity_token="refresh-s3cret")
    assert repr(login) == "Login(credentials=<Credentials>, checked=True)"


async def test_a_server_that_is_no_registry_is_named() -> None:
    with Registry() as registry:
        registry.faults.add("base", Status(404))
        with pytest.raises(SourceError, match="does not answer like a registry"):
            await try_login(registry.host, ALICE, SETTINGS)
        registry.faults.add("base", Status(403))
        with pytest.raises(Unauthorized, match="HTTP 403"):
            await try_login(registry.host, ALICE, SETTINGS)
        registry.faults.add("base", Status(503), times=2)
        assert await try_login(registry.host, ALICE, SETTINGS) == Login(ALICE, checked=False)
        host = registry.host
    with pytest.raises(Unreachable, match="cannot connect"):
        await try_login(host, ALICE, SETTINGS)


async def test_credentials_are_for_the_registry_and_for_no_mirror(tmp_path: Path) -> None:
    access = Access(mode="basic", users=USERS)
    with Registry(access=access) as home, Registry(access=access) as mirror:
        (tmp_path / home.host).mkdir()
        file = tmp_path / home.host / "hosts.toml"
        with_mirrors = replace(SETTINGS, hosts_dir=tmp_path)
        for server in (home.base_url, mirror.base_url):
            file.write_text(f'server = "{server}"\n[host."{mirror.base_url}"]')
            assert (await try_login(home.host, ALICE, with_mirrors)).checked
        assert mirror.seen == []


# Keeping


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o7777


async def lookup(*paths: Path, registry: str = "reg.example") -> Credentials | None:
    return await ConfigCredentials(paths, helper_timeout_s=20).lookup(registry, "app")


async def test_a_new_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / ".docker" / "config.json"
    assert await keep_login([path], "reg.example", ALICE) == Kept(str(path), encrypted=False)
    assert mode_of(path) == 0o600
    assert mode_of(path.parent) == 0o700
    assert json.loads(path.read_bytes()) == {
        "auths": {"reg.example": {"auth": base64.b64encode(b"alice:s3cret:pw").decode()}}
    }
    assert await lookup(path) == ALICE
    assert list(path.parent.iterdir()) == [path]


async def test_the_hub_has_dockers_own_key(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"auths": {"docker.io": {"auth": "b2xkOm9sZA=="}, "x.example": {}}}))
    await keep_login([path], "docker.io", ALICE)
    assert list(json.loads(path.read_bytes())["auths"]) == ["x.example", HUB]
    assert await lookup(path, registry="docker.io") == ALICE
    assert await forget_login([path], "docker.io") == [str(path)]
    assert json.loads(path.read_bytes()) == {"auths": {"x.example": {}}}


async def test_an_identity_token_is_written_as_docker_does(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    await keep_login([path], "reg.example", Credentials("alice", identity_token="s3cret"))
    entry = json.loads(path.read_bytes())["auths"]["reg.example"]
    assert entry == {"auth": base64.b64encode(b"alice:").decode(), "identitytoken": "s3cret"}
    assert await lookup(path) == Credentials(identity_token="s3cret")


async def test_everything_else_in_the_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    content = {
        "HttpHeaders": {"X-Meta": "é"},
        "auths": {"https://reg.example/v2/": {"auth": "eDp5"}, "reg.example/team": {"auth": "eDp5"}},
        "credHelpers": {"other.example": "other"},
        "future": [1, None],
    }
    path.write_text(json.dumps(content))
    path.chmod(0o644)
    await keep_login([path], "reg.example", ALICE)
    kept = json.loads(path.read_bytes())
    assert list(kept) == list(content)
    assert list(kept["auths"]) == ["reg.example/team", "reg.example"]
    assert mode_of(path) == 0o600
    assert await forget_login([path], "reg.example") == [str(path)]
    content["auths"] = {"reg.example/team": {"auth": "eDp5"}}
    assert json.loads(path.read_bytes()) == content
    assert await forget_login([path], "reg.example") == []


async def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "config.json"
    link.symlink_to("real/config.json")
    for registry in ("a.example", "b.example"):
        await keep_login([link], registry, ALICE)
    assert link.is_symlink()
    assert mode_of(tmp_path / "real/config.json") == 0o600
    assert await lookup(link, registry="a.example") == ALICE


async def test_a_login_goes_where_it_is_not_hidden(tmp_path: Path) -> None:
    first, last = tmp_path / "auth.json", tmp_path / "config.json"
    await keep_login([first, last], "reg.example", ALICE)
    assert not first.exists()
    first.write_text(json.dumps({"auths": {"reg.example": {"auth": "eDp5"}}}))
    bob = Credentials("bob", "pw")
    assert await keep_login([first, last], "reg.example", bob) == Kept(str(first), encrypted=False)
    assert await lookup(first, last) == bob
    assert await forget_login([first, tmp_path / "absent", last], "reg.example") == [str(first), str(last)]
    assert await lookup(first, last) is None


@pytest.fixture
def vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Vault:
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return install_helper(tmp_path / "bin")


@pytest.mark.parametrize("config", [{"credsStore": "vault"}, {"credHelpers": {"reg.example": "vault"}}])
async def test_a_helper_keeps_the_secret_and_the_file_a_mark(
    config: dict[str, Any], vault: Vault, tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**config, "auths": {"reg.example": {"auth": "eDp5"}}}))
    assert await keep_login([path], "reg.example", ALICE) == Kept("docker-credential-vault", encrypted=True)
    assert vault.held == {"reg.example": {"Username": "alice", "Secret": "s3cret:pw"}}
    assert json.loads(path.read_bytes()) == {**config, "auths": {"reg.example": {}}}
    assert await lookup(path) == ALICE
    token = Credentials("alice", identity_token="t0ken")
    await keep_login([path], "reg.example", token)
    assert vault.held["reg.example"] == {"Username": "<token>", "Secret": "t0ken"}
    assert await lookup(path) == replace(token, username="")
    assert await forget_login([path], "reg.example") == ["docker-credential-vault", str(path)]
    assert vault.held == {}
    assert await forget_login([path], "reg.example") == []
    assert set(vault.asked) == {"store", "get", "erase"}  # and no argument beside


async def test_a_helper_that_fails_keeps_nothing(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    content = json.dumps({"credsStore": "absent", "auths": {"reg.example": {}}})
    path.write_text(content)
    for work in (keep_login([path], "reg.example", ALICE), forget_login([path], "reg.example")):
        with pytest.raises(ConfigError, match=r"reg\.example: docker-credential-absent cannot be run"):
            await work
    assert path.read_text() == content


@pytest.mark.parametrize(
    "content", ["", "[]", '{"auths": 5}', '{"auths": {}, "auths": {}}', '{"credsStore": 1}']
)
async def test_a_file_that_cannot_be_understood_is_not_touched(content: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    for work in (keep_login([path], "reg.example", ALICE), forget_login([path], "reg.example")):
        with pytest.raises(ConfigError, match=str(path)):
            await work
    assert path.read_text() == content


async def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file/config\.json: credentials cannot be written: File exists"):
        await keep_login([tmp_path / "file" / "config.json"], "reg.example", ALICE)


WORDS = st.text(min_size=1, max_size=12).filter(lambda text: "\0" not in text and text.isprintable())


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    WORDS.filter(lambda text: ":" not in text),
    WORDS,
    st.sampled_from(["a.example", "a.example:5000", "docker.io", "localhost"]),
    st.dictionaries(st.sampled_from(["b.example", "a.example", HUB, "https://a.example/v1/"]), st.just({})),
)
async def test_what_is_kept_is_found_and_what_is_forgotten_is_not(
    tmp_path: Path, user: str, password: str, registry: str, before: dict[str, Any]
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"auths": before}))
    await keep_login([path], registry, Credentials(user, password))
    assert await lookup(path, registry=registry) == Credentials(user, password)
    assert await forget_login([path], registry) == [str(path)]
    assert await lookup(path, registry=registry) is None
