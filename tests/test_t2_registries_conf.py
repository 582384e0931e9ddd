"""Podman's registries.conf: who is asked for which name, and that it is reached."""

import os
import ssl
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from lazyfs.errors import ConfigError
from lazyfs.oci.reference import parse_reference
from lazyfs.source.auth.credentials import Credentials, StaticCredentials
from lazyfs.source.hosts.hosts_config import endpoints_of
from lazyfs.source.http.settings import Capability, SourceSettings
from lazyfs.source.open import open_registry
from lazyfs.source.registry.source import RegistrySource
from tests.support.images import build_image
from tests.support.registry import Registry
from tests.support.registry_auth import Access as Users
from tests.support.registry_client import SETTINGS, layer_link
from tests.support.registry_tls import make_authority

DATA = bytes(range(256)) * 40
IMAGE = build_image([DATA], compression="none")
LINK = layer_link(DATA)

CONF = """
unqualified-search-registries = ["docker.io"]
[[registry]]
prefix = "registry.example/team"
location = "store.example:5000/kept/"
[[registry.mirror]]
location = "near.example/cache"
[[registry.mirror]]
location = "far.example"
pull-from-mirror = "digest-only"
[[registry.mirror]]
location = "tags.example"
pull-from-mirror = "tag-only"

[[registry]]
location = "registry.example"

[[registry]]
prefix = "docker.io"
location = "hub.example/docker"

[[registry]]
prefix = "*.wild.example"

[[registry]]
prefix = "*.moved.example"
location = "here.example"

[[registry]]
location = "digests.example"
mirror-by-digest-only = true
[[registry.mirror]]
location = "digests-mirror.example"

[[registry]]
location = "closed.example/secret"
blocked = true
"""


@pytest.fixture
def conf(tmp_path: Path) -> Callable[..., SourceSettings]:
    """Settings with a file of this text, and drop-ins."""

    def make(text: str, **drop_ins: str) -> SourceSettings:
        file = tmp_path / "registries.conf"
        file.write_text(text)
        folder = tmp_path / "registries.conf.d"
        folder.mkdir(exist_ok=True)
        for name, drop_in in drop_ins.items():
            (folder / f"{name}.conf").write_text(drop_in)
        return replace(SETTINGS, registries_conf=file)

    return make


def asked(name: str, settings: SourceSettings) -> list[str]:
    """Where a repository is looked for."""
    reference = parse_reference(name)
    found = endpoints_of(reference.registry, settings, reference.repository)
    return [
        f"{each.base_url.removesuffix('/v2')}/{each.repository or reference.repository}" for each in found
    ]


@pytest.mark.parametrize(
    ("name", "places"),
    [
        (
            "registry.example/team/app",
            ["near.example/cache/app", "far.example/app", "tags.example/app", "store.example:5000/kept/app"],
        ),
        ("registry.example/team/deep/app", ["near.example/cache/deep/app", "far.example/deep/app"]),
        ("registry.example/teams/app", ["registry.example/teams/app"]),
        ("registry.example:5000/team/app", ["registry.example:5000/team/app"]),
        ("python", ["hub.example/docker/library/python"]),
        ("a.wild.example/app", ["a.wild.example/app"]),
        ("a.b.wild.example:5000/app", ["a.b.wild.example:5000/app"]),
        ("a.moved.example/app", ["here.example/app"]),
        ("a.moved.example:5000/app", ["here.example:5000/app"]),
        ("moved.example/app", ["moved.example/app"]),
        ("else.example/app", ["else.example/app"]),
    ],
)
def test_the_longest_prefix_says_who_is_asked(
    conf: Callable[..., SourceSettings], name: str, places: list[str]
) -> None:
    assert asked(name, conf(CONF))[: len(places)] == [f"https://{place}" for place in places]


def test_mirrors_are_asked_for_what_they_are_said_to_have(conf: Callable[..., SourceSettings]) -> None:
    settings = conf(CONF)
    able = [each.capabilities for each in endpoints_of("registry.example", settings, "team/app")]
    wanted = (Capability.RESOLVE, Capability.PULL, Capability.PUSH)
    assert [[one in each for one in wanted] for each in able] == [
        [True, True, False],
        [False, True, False],
        [True, False, False],
        [True, True, True],
    ]
    mirror, _ = endpoints_of("digests.example", settings, "app")
    assert Capability.RESOLVE not in mirror.capabilities


def test_drop_ins_replace_what_is_of_the_same_prefix(conf: Callable[..., SourceSettings]) -> None:
    first = '[[registry]]\nprefix = "docker.io"\nlocation = "one.example"'
    settings = conf(CONF, a=first, b=first.replace("one", "two"))
    assert asked("python", settings) == ["https://two.example/library/python"]
    assert asked("registry.example/team/app", settings)[0] == "https://near.example/cache/app"


def test_of_the_same_prefix_in_a_file_the_first_counts(conf: Callable[..., SourceSettings]) -> None:
    first = '[[registry]]\nprefix = "docker.io"\nlocation = "one.example"\n'
    assert asked("python", conf(first + first.replace("one", "two"))) == [
        "https://one.example/library/python"
    ]


def test_a_directory_among_drop_ins_is_passed_over(
    conf: Callable[..., SourceSettings], tmp_path: Path
) -> None:
    settings = conf(CONF)
    (tmp_path / "registries.conf.d/old.conf").mkdir()
    assert asked("python", settings) == ["https://hub.example/docker/library/python"]


def test_a_fifo_among_drop_ins_holds_nobody(conf: Callable[..., SourceSettings], tmp_path: Path) -> None:
    settings = conf(CONF)
    os.mkfifo(tmp_path / "registries.conf.d/pipe.conf")
    with pytest.raises(ConfigError, match="a FIFO, not a file"):
        endpoints_of("app.example", settings, "app")


def test_an_insecure_host_that_can_be_nobodys_is_no_bug(conf: Callable[..., SourceSettings]) -> None:
    host = f"{'a' * 64}.example"
    settings = conf(f'[[registry]]\nprefix = "app.example"\nlocation = "{host}"\ninsecure = true')
    assert asked("app.example/app", settings) == [f"https://{host}/app"]


def test_hosts_toml_goes_before(conf: Callable[..., SourceSettings], tmp_path: Path) -> None:
    (tmp_path / "certs.d/registry.example").mkdir(parents=True)
    (tmp_path / "certs.d/registry.example/hosts.toml").write_text('server = "https://other.example"')
    settings = replace(conf(CONF), hosts_dir=tmp_path / "certs.d")
    assert asked("registry.example/team/app", settings) == ["https://other.example/team/app"]
    assert asked("python", settings) == ["https://hub.example/docker/library/python"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[[registry", "not TOML"),
        ("\xff", "not TOML"),
        ("[registries.search]\nregistries = []", "version 1"),
        ("registry = 1", "'registry' is not a list"),
        ("[[registry]]\nlocation = 1", "'location' is not a string"),
        ("[[registry]]\nblocked = true", "'location' is missing"),
        ('[[registry]]\nprefix = "app.example"', "'location' is missing"),
        ('[[registry]]\nlocation = "https://app.example"', "without a scheme"),
        ('[[registry]]\nlocation = "app.example"\ninsecure = "yes"', "'insecure' is not true or false"),
        ('[[registry]]\nlocation = "app.example"\nmirror = [{}]', r"mirror\[0\]: 'location' is missing"),
        (
            '[[registry]]\nlocation = "app.example"\nmirror = [{location = "m", pull-from-mirror = "x"}]',
            "all",
        ),
        ('[[registry]]\nprefix = "app.example"\nlocation = "up/../STAIRS"', "a location that is none"),
        ('[[registry]]\nlocation = "app.example"\nblocked = true', "registry 'app.example': is blocked"),
        ('[[registry]]\nprefix = "*.app.example:5000"\nblocked = true', r"'prefix' is \*.DOMAIN"),
        ("n = " + "9" * 5000, "not TOML"),
        ("#" * (2 << 20), "more than"),
    ],
)
def test_what_makes_no_sense_is_said_in_a_line(
    conf: Callable[..., SourceSettings], text: str, complaint: str
) -> None:
    settings = conf("")
    assert settings.registries_conf is not None
    settings.registries_conf.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=complaint) as caught:
        endpoints_of("app.example", settings, "app")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(settings.registries_conf))


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    settings = replace(SETTINGS, registries_conf=tmp_path / "none")
    with pytest.raises(ConfigError, match="none: cannot be read: No such file"):
        endpoints_of("app.example", settings)


def opened(settings: SourceSettings, **more: Any) -> AbstractAsyncContextManager[RegistrySource]:
    return open_registry(parse_reference("registry.example/team/app:1"), replace(settings, **more))


@pytest.mark.parametrize("insecure", ["false", "true"])
async def test_an_image_comes_from_a_mirror_by_the_name_that_it_has_there(
    conf: Callable[..., SourceSettings], insecure: str
) -> None:
    with Registry(access=Users(mode="basic", users={"user": "pw"})) as mirror:
        mirror.push("cache/app", IMAGE, "1")
        settings = conf(f"""
            [[registry]]
            location = "registry.example"
            mirror = [{{location = "{mirror.host}/cache", insecure = {insecure}}}]
            [[registry]]
            prefix = "registry.example/team"
            location = "registry.example"
            mirror = [{{location = "{mirror.host}/cache", insecure = {insecure}}}]
        """)
        who = StaticCredentials(mirror.host, Credentials("user", "pw"))
        async with opened(settings, credentials=who) as source:
            assert (await source.resolve()).digest == IMAGE.digest
            assert await source.blob(LINK).fetch(0, 100, bytes) == DATA[:100]


@pytest.mark.parametrize("insecure", [True, False])
async def test_an_insecure_place_with_tls_needs_no_good_certificate(
    conf: Callable[..., SourceSettings], tmp_path: Path, insecure: bool
) -> None:
    authority = make_authority(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.server_cert, authority.server_key)
    with Registry(tls=context) as registry:
        registry.push("app", IMAGE, "1")
        settings = conf(f"""
            [[registry]]
            prefix = "registry.example/team"
            location = "{registry.host}"
            insecure = {str(insecure).lower()}
        """)
        async with opened(settings, plain_http=None if insecure else False) as source:
            if insecure:
                assert await source.blob(LINK).fetch(0, 100, bytes) == DATA[:100]
            else:
                with pytest.raises(Exception, match="certificate"):
                    await source.resolve()
