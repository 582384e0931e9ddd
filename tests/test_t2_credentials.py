"""Credentials: which entry counts, helpers that are programs, and that nothing of them is shown."""

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lazyfs.errors import ConfigError
from lazyfs.source.auth.credentials import ConfigCredentials, Credentials, NoCredentials

HUB = "https://index.docker.io/v1/"


def pair(text: str) -> dict[str, str]:
    return {"auth": base64.b64encode(text.encode()).decode()}


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., ConfigCredentials]:
    """Credentials from files with these contents, the first one asked first."""

    def write(*contents: Any) -> ConfigCredentials:
        paths = []
        for number, content in enumerate(contents):
            paths.append(tmp_path / f"config{number}.json")
            text = content if isinstance(content, bytes) else json.dumps(content).encode()
            paths[-1].write_bytes(text)
        return ConfigCredentials(paths, helper_timeout_s=5)

    return write


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Put a program `docker-credential-NAME` on the PATH; the file given back says what it was asked."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def write(name: str, script: str) -> Path:
        asked = tmp_path / f"asked-{name}"
        program = tmp_path / f"docker-credential-{name}"
        program.write_text(f'#!/bin/sh\nprintf "%s " "$1" >> {asked}\ncat >> {asked}\n{script}\n')
        program.chmod(0o755)
        return asked

    return write


DOCKER_AUTHS = {
    "auths": {
        HUB: pair("hub:hub-pw"),
        "plain.example": pair("plain:a:b"),
        "port.example:5000": pair("port:pw"),
        "https://url.example/v2/": pair("url:pw"),
        "http://old.example/v1": pair("old:pw"),
        "padded.example": pair("padded:pw\0\0"),
        "split.example": {"username": "split", "password": "pw"},
        "identity.example": {"identitytoken": "identity"} | pair("ignored:"),
        "ready.example": {"registrytoken": "ready"},
        "nameless.example": pair(":secret"),
        "marker.example": {},
        "ns.example": pair("host:pw"),
        "ns.example/team": pair("team:pw"),
        "ns.example/team/app": pair("app:pw"),
    }
}

LOOKUPS = {
    ("docker.io", "library/x"): Credentials("hub", "hub-pw"),
    ("plain.example", "x"): Credentials("plain", "a:b"),
    ("port.example:5000", "x"): Credentials("port", "pw"),
    ("port.example", "x"): None,
    ("url.example", "x"): Credentials("url", "pw"),
    ("old.example", "x"): Credentials("old", "pw"),
    ("padded.example", "x"): Credentials("padded", "pw"),
    ("split.example", "x"): Credentials("split", "pw"),
    ("identity.example", "x"): Credentials(identity_token="identity"),
    ("ready.example", "x"): Credentials(registry_token="ready"),
    ("nameless.example", "x"): Credentials(identity_token="secret"),
    ("marker.example", "x"): None,
    ("ns.example", "other"): Credentials("host", "pw"),
    ("ns.example", "team/x"): Credentials("team", "pw"),
    ("ns.example", "teams"): Credentials("host", "pw"),
    ("ns.example", "team/app"): Credentials("app", "pw"),
    ("ns.example", "team/app/deep"): Credentials("app", "pw"),
    ("absent.example", "x"): None,
}


@pytest.mark.parametrize("wanted", LOOKUPS, ids="/".join)
async def test_the_entry_that_fits_best_counts(
    config: Callable[..., ConfigCredentials], wanted: tuple[str, str]
) -> None:
    assert await config(DOCKER_AUTHS).lookup(*wanted) == LOOKUPS[wanted]


@pytest.mark.parametrize(
    "key", [HUB, "docker.io", "index.docker.io", "registry-1.docker.io", "https://docker.io"]
)
async def test_the_hub_goes_by_many_names(config: Callable[..., ConfigCredentials], key: str) -> None:
    provider = config({"auths": {key: pair("hub:pw")}})
    assert await provider.lookup("docker.io", "library/x") == Credentials("hub", "pw")


async def test_the_first_file_that_knows_the_registry_decides(
    config: Callable[..., ConfigCredentials],
) -> None:
    first = {"auths": {"a.example": pair("first:pw"), "b.example": {}}}
    second = {"auths": {"a.example": pair("second:pw"), "b.example": pair("second:pw")}}
    provider = config(first, second)
    assert await provider.lookup("a.example", "x") == Credentials("first", "pw")
    assert await provider.lookup("b.example", "x") == Credentials("second", "pw")


async def test_files_that_are_not_there_are_passed_over(
    tmp_path: Path, config: Callable[..., ConfigCredentials]
) -> None:
    existing = config(DOCKER_AUTHS).paths
    provider = ConfigCredentials([tmp_path / "absent", tmp_path / "config0.json" / "x", *existing])
    assert await provider.lookup("split.example", "x") == Credentials("split", "pw")
    assert await NoCredentials().lookup("split.example", "x") is None


async def test_credentials_are_read_anew_each_time(config: Callable[..., ConfigCredentials]) -> None:
    provider = config({"auths": {"a.example": pair("u:old")}})
    assert await provider.lookup("a.example", "x") == Credentials("u", "old")
    config({"auths": {"a.example": pair("u:new")}})
    assert await provider.lookup("a.example", "x") == Credentials("u", "new")


@pytest.mark.parametrize(
    "content",
    [
        b"s3cret",
        b"[]",
        b'{"auths": "s3cret"}',
        {"auths": {"a.example": "s3cret"}},
        {"auths": {"a.example": {"auth": "s3cret!"}}},
        {"auths": {"a.example": {"auth": base64.b64encode(b"s3cret").decode()}}},
        {"auths": {"a.example": {"identitytoken": ["s3cret"]}}},
        {"credHelpers": {"a.example": ["s3cret"]}},
        {"credHelpers": "s3cret"},
        {"credsStore": {"s3cret": 1}},
        b"{}" + b" " * (4 << 20),
    ],
)
async def test_a_broken_file_is_an_error_that_shows_nothing_of_it(
    config: Callable[..., ConfigCredentials], content: Any
) -> None:
    with pytest.raises(ConfigError) as error:
        await config(content).lookup("a.example", "x")
    assert "s3cret" not in str(error.value)
    assert "config0.json" in str(error.value)


async def test_a_helper_is_asked_by_its_protocol(
    config: Callable[..., ConfigCredentials], helper: Callable[[str, str], Path]
) -> None:
    asked = helper("vault", """echo '{"ServerURL":"x","Username":"u","Secret":"s"}'""")
    provider = config({"credsStore": "vault", "auths": {"a.example": {}}})
    assert await provider.lookup("a.example", "x") == Credentials("u", "s")
    assert await provider.lookup("docker.io", "library/x") == Credentials("u", "s")
    assert asked.read_text() == f"get a.exampleget {HUB}"


async def test_a_helper_may_give_an_identity_token(
    config: Callable[..., ConfigCredentials], helper: Callable[[str, str], Path]
) -> None:
    helper("vault", """echo '{"Username":"<token>","Secret":"s"}'""")
    assert await config({"credsStore": "vault"}).lookup("a.example", "x") == Credentials(identity_token="s")


async def test_a_registrys_own_helper_goes_before_the_store(
    config: Callable[..., ConfigCredentials], helper: Callable[[str, str], Path]
) -> None:
    helper("own", """echo '{"Username":"own","Secret":"s"}'""")
    helper("store", """echo '{"Username":"store","Secret":"s"}'""")
    provider = config({"credsStore": "store", "credHelpers": {"a.example": "own", "docker.io": "own"}})
    assert await provider.lookup("a.example", "x") == Credentials("own", "s")
    assert await provider.lookup("b.example", "x") == Credentials("store", "s")
    assert await provider.lookup("docker.io", "library/x") == Credentials("own", "s")


async def test_a_helper_that_has_none_leaves_it_to_the_file(
    config: Callable[..., ConfigCredentials], helper: Callable[[str, str], Path]
) -> None:
    helper("vault", "echo 'credentials not found in native keychain'; exit 1")
    provider = config({"credsStore": "vault", "auths": {"a.example": pair("file:pw")}})
    assert await provider.lookup("a.example", "x") == Credentials("file", "pw")
    assert await provider.lookup("b.example", "x") is None


@pytest.mark.expect_log("no credentials for a.example: docker-credential-vault")
@pytest.mark.parametrize(
    "script",
    [
        "echo s3cret; exit 3",
        "echo s3cret",
        """echo '{"Username":"u","Secret":["s3cret"]}'""",
        "echo s3cret >&2; kill -9 $$",
    ],
)
async def test_a_helper_that_fails_is_reported_without_what_it_said(
    config: Callable[..., ConfigCredentials],
    helper: Callable[[str, str], Path],
    caplog: pytest.LogCaptureFixture,
    script: str,
) -> None:
    helper("vault", script)
    assert await config({"credsStore": "vault"}).lookup("a.example", "x") is None
    assert "s3cret" not in caplog.text


@pytest.mark.expect_log("no credentials for a.example: docker-credential-absent cannot be run: No such file")
async def test_a_helper_that_is_not_installed_is_reported(config: Callable[..., ConfigCredentials]) -> None:
    assert await config({"credsStore": "absent"}).lookup("a.example", "x") is None


@pytest.mark.expect_log("no possible name")
async def test_a_helper_is_a_program_of_the_path_and_no_other(
    config: Callable[..., ConfigCredentials],
) -> None:
    assert await config({"credsStore": "../../bin/sh"}).lookup("a.example", "x") is None


@pytest.mark.expect_log("did not answer in 0.05 s")
async def test_a_helper_that_hangs_is_given_up(
    config: Callable[..., ConfigCredentials], helper: Callable[[str, str], Path]
) -> None:
    helper("vault", "exec sleep 1000")
    provider = ConfigCredentials(config({"credsStore": "vault"}).paths, helper_timeout_s=0.05)
    assert await provider.lookup("a.example", "x") is None


TEXT = st.text(max_size=8) | st.none() | st.integers() | st.sampled_from(["dTpw", "Og==", "a.example"])
ENTRIES = st.dictionaries(st.sampled_from(["auth", "username", "password", "identitytoken"]), TEXT)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.sampled_from(["a.example", "https://a.example/v1/", "/", "://", "a.example/x"]), ENTRIES | TEXT
    )
)
async def test_any_entries_give_credentials_or_our_error(
    config: Callable[..., ConfigCredentials], auths: dict[str, Any]
) -> None:
    try:
        found = await config({"auths": auths}).lookup("a.example", "x")
    except ConfigError:
        return
    assert found is None or found.password or found.identity_token


async def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Is a directory"):
        await ConfigCredentials([tmp_path]).lookup("a.example", "x")
