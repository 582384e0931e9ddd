"""Mirrors in front of a registry: what is asked of whom, and how readers go on when one of them fails."""

from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
import trio
from msgspec.structs import replace
from trio.testing import MockClock

from indexer.digest import sha256_digest
from indexer.errors import DigestMismatch
from lazyfs.errors import ConfigError, NotFound, Unreachable
from lazyfs.oci.platform import parse_platform
from lazyfs.oci.reference import parse_reference
from lazyfs.source.auth.credentials import Credentials, StaticCredentials
from lazyfs.source.http.retry import RetryPolicy
from lazyfs.source.open import open_registry
from lazyfs.source.registry.places import FIRST_REST_S
from lazyfs.source.registry.source import RegistrySource
from tests.support.images import build_image
from tests.support.registry import Registry
from tests.support.registry_auth import Access as Users
from tests.support.registry_client import SETTINGS, image_of, layer_link
from tests.support.registry_faults import Corrupt, Reset, Stall, StallHead, Status
from tests.support.registry_tls import TestAuthority, make_authority

AMD64 = parse_platform("linux/amd64")
DATA = bytes(range(256)) * 400
IMAGE = build_image([DATA], compression="none")
LINK = layer_link(DATA)
NAME = "registry.example/app:1"


@pytest.fixture
def registries() -> Iterator[tuple[Registry, Registry, Registry]]:
    """Two mirrors and the registry itself, all with the image."""
    with Registry() as one, Registry() as other, Registry() as home:
        for registry in (one, other, home):
            registry.push("app", IMAGE, "1")
        yield one, other, home


Open = Callable[..., AbstractAsyncContextManager[RegistrySource]]


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    """A source for NAME, by a `hosts.toml` with this text; keywords replace settings."""

    def open_with(
        text: str, name: str = NAME, **settings: Any
    ) -> AbstractAsyncContextManager[RegistrySource]:
        reference = parse_reference(name)
        directory = tmp_path / reference.registry
        directory.mkdir(exist_ok=True)
        (directory / "hosts.toml").write_text(text)
        return open_registry(reference, replace(SETTINGS, hosts_dir=tmp_path, **settings))

    return open_with


def listing(*registries: Registry, keys: str = "") -> str:
    """A file with all but the last as mirrors."""
    *mirrors, home = registries
    tables = [f'[host."{mirror.base_url}"]\n{keys}\n' for mirror in mirrors]
    return f'server = "{home.base_url}"\n' + "".join(tables)


async def read(source: RegistrySource, start: int = 0, end: int = 100) -> None:
    assert await source.blob(LINK).fetch(start, end, bytes) == DATA[start:end]


async def test_the_first_mirror_serves_everything_and_is_told_for_whom(
    registries: tuple[Registry, ...], opened: Open
) -> None:
    one, other, home = registries
    async with opened(listing(*registries)) as source:
        assert (await image_of(source, AMD64)).descriptor.digest == IMAGE.digest
        await read(source)
    assert {seen.target.partition("?")[2] for seen in one.seen} == {"ns=registry.example"}
    assert len(one.seen) == 3
    assert other.seen == home.seen == []


TROUBLES: dict[str, Callable[[Registry], None]] = {
    "no such tag": lambda mirror: mirror.faults.add("manifest", Status(404), times=99),
    "not allowed": lambda mirror: mirror.faults.add("manifest", Status(403), times=99),
    "broken": lambda mirror: mirror.faults.add("manifest", Status(500), times=99),
    "busy": lambda mirror: mirror.faults.add("manifest", Status(429, {"Retry-After": "60"}), times=99),
    "reset": lambda mirror: mirror.faults.add("manifest", Reset(-1), times=99),
    "wrong bytes": lambda mirror: mirror.faults.add("manifest", Corrupt(3), times=99),
    "silent": lambda mirror: mirror.faults.add("manifest", StallHead(), times=99),
    "nonsense": lambda mirror: mirror.faults.add("manifest", Status(200, {}, b"<html>"), times=99),
    "down": lambda mirror: mirror.__exit__(None, None, None),
}


@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize("by", ["tag", "digest"])
async def test_a_mirror_in_trouble_leaves_it_to_the_next(
    trouble: str, by: str, registries: tuple[Registry, ...], opened: Open
) -> None:
    one, other, home = registries
    TROUBLES[trouble](one)
    name = NAME if by == "tag" else f"registry.example/app@{IMAGE.digest}"
    stall_timeout_s = 0.5 if trouble == "silent" else 30.0
    async with opened(listing(*registries), name, stall_timeout_s=stall_timeout_s) as source:
        assert await source.document(await source.resolve()) == IMAGE.data
        TROUBLES[trouble](other)
        assert await source.document(replace(await source.resolve(), media_type="")) == IMAGE.data
    assert len(home.seen) == 1


async def test_the_registrys_own_error_counts(registries: tuple[Registry, ...], opened: Open) -> None:
    one, other, home = registries
    one.faults.add("manifest", Status(403))
    other.faults.add("manifest", Status(503))
    async with opened(listing(*registries), "registry.example/app:9") as source:
        with pytest.raises(NotFound, match=f"tag '9' of {home.host}/app"):
            await source.resolve()


async def test_a_host_is_asked_only_for_what_it_is_said_to_give(
    registries: tuple[Registry, ...], opened: Open
) -> None:
    one, _, home = registries
    async with opened(listing(one, home, keys='capabilities = ["pull"]')) as source:
        await image_of(source, AMD64)
        await read(source)
    assert [seen.kind for seen in home.seen] == ["manifest"]
    assert [seen.kind for seen in one.seen] == ["blob", "blob"]


async def test_where_nobody_may_resolve_tags_the_file_is_to_blame(
    registries: tuple[Registry, ...], opened: Open
) -> None:
    one, _, home = registries
    keys = 'capabilities = ["pull"]\n'
    async with opened(keys + listing(one, home, keys=keys)) as source:
        with pytest.raises(ConfigError, match=r"registry\.example: no host in its hosts\.toml .* resolve"):
            await source.resolve()


async def test_headers_go_to_their_host_and_to_no_other(opened: Open) -> None:
    with Registry(cdn=True) as mirror, Registry() as home:
        mirror.push("app", IMAGE, "1")
        text = listing(mirror, home) + f'[host."{mirror.base_url}".header]\nx-key = "s3cret"'
        async with opened(text) as source:
            await image_of(source, AMD64)
            await read(source)
            assert "s3cret" not in repr(source) + repr(source.hosts)
        kinds = {seen.kind: seen.headers.get("x-key") for seen in mirror.seen}
        assert kinds == {"manifest": "s3cret", "blob": "s3cret", "cdn": None}
        assert home.seen == []


async def test_an_authorization_header_serves_until_the_registry_wants_another(opened: Open) -> None:
    users = Users(mode="basic", users={"user": "pw"})
    with Registry(access=users) as mirror, Registry() as home:
        mirror.push("app", IMAGE, "1")
        text = listing(mirror, home) + f'[host."{mirror.base_url}".header]\nauthorization = "%s"'
        async with opened(text % "Basic dXNlcjpwdw==") as source:
            await source.resolve()
        assert [seen.status for seen in mirror.seen] == [200]
        provider = StaticCredentials(mirror.host, Credentials("user", "pw"))
        async with opened(text % "Basic eDp5", credentials=provider) as source:
            await source.resolve()
        assert [seen.status for seen in mirror.seen] == [200, 401, 200]
        assert home.seen == []


async def test_credentials_are_those_of_the_mirror(opened: Open) -> None:
    users = Users(mode="token", users={"user": "pw"}, anonymous_pull=False)
    with Registry(access=users) as mirror, Registry() as home:
        mirror.push("app", IMAGE, "1")
        home.push("app", IMAGE, "1")
        provider = StaticCredentials(mirror.host, Credentials("user", "pw"))
        async with opened(listing(mirror, home), credentials=provider) as source:
            await source.resolve()
            await read(source)
        assert home.seen == []
        other = StaticCredentials("registry.example", Credentials("user", "pw"))
        async with opened(listing(mirror, home), credentials=other) as source:
            await source.resolve()
        assert [seen.status for seen in home.seen] == [200]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> TestAuthority:
    return make_authority(tmp_path_factory.mktemp("tls"))


@pytest.mark.parametrize("known", ["ca", "skip", "nothing"])
@pytest.mark.parametrize("client", [False, True])
async def test_each_host_has_its_own_certificates(
    known: str, client: bool, authority: TestAuthority, opened: Open
) -> None:
    keys = {"ca": f'ca = "{authority.ca_file}"', "skip": "skip_verify = true", "nothing": ""}[known]
    if client:
        keys += f'\nclient = [["{authority.client_cert}", "{authority.client_key}"]]'
    with Registry(tls=authority.server_context(want_client=client)) as mirror, Registry() as home:
        for registry in (mirror, home):
            registry.push("app", IMAGE, "1")
        async with opened(listing(mirror, home, keys=keys)) as source:
            await image_of(source, AMD64)
            await read(source)
        asked, spared = (home, mirror) if known == "nothing" else (mirror, home)
        assert len(asked.seen) == 3
        assert spared.seen == []


async def test_certificates_of_the_mirror_are_not_the_registrys(
    authority: TestAuthority, opened: Open
) -> None:
    context = authority.server_context()
    with Registry(tls=context) as mirror, Registry(tls=context) as home:
        home.push("app", IMAGE, "1")
        async with opened(listing(mirror, home, keys=f'ca = "{authority.ca_file}"')) as source:
            with pytest.raises(Unreachable, match="not trusted"):
                await source.resolve()
        assert len(mirror.seen) == 1
        assert home.seen == []


async def test_when_a_mirror_dies_readers_go_on_elsewhere_and_leave_it_alone(
    registries: tuple[Registry, ...], opened: Open, mock_clock: MockClock
) -> None:
    one, _, home = registries
    async with opened(listing(one, home)) as source:
        await read(source)
        assert home.seen == []
        one.faults.add("blob", Reset(50), times=99)
        async with trio.open_nursery() as nursery:
            for start in range(8):
                nursery.start_soon(read, source, start * 1000, start * 1000 + 500)
        assert home.requests["GET", "blob"] == 8
        dead = one.requests["GET", "blob"]
        for start in range(5):
            await read(source, start, 900)
        assert one.requests["GET", "blob"] == dead
        mock_clock.jump(FIRST_REST_S + 0.1)  # one of many tries it again
        async with trio.open_nursery() as nursery:
            for start in range(8):
                nursery.start_soon(read, source, start * 1000, start * 1000 + 500)
        assert one.requests["GET", "blob"] == dead + 1
        mock_clock.jump(FIRST_REST_S + 0.1)  # it failed again, and rests twice as long
        await read(source)
        assert one.requests["GET", "blob"] == dead + 1


async def test_a_mirror_that_came_back_is_used_again(
    registries: tuple[Registry, ...], opened: Open, mock_clock: MockClock
) -> None:
    one, _, home = registries
    one.faults.add("blob", Status(503))
    async with opened(listing(one, home)) as source:
        await read(source)
        mock_clock.jump(FIRST_REST_S + 0.1)
        for _ in range(3):
            await read(source)
    assert one.requests["GET", "blob"] == 4
    assert home.requests["GET", "blob"] == 1


async def test_what_a_mirror_does_not_have_is_not_asked_of_it_each_time(
    registries: tuple[Registry, ...], opened: Open
) -> None:
    one, _, home = registries
    absent = layer_link(b"absent" * 1000)
    home.put_blob("app", b"absent" * 1000)
    async with opened(listing(one, home)) as source:
        for _ in range(3):
            assert await source.blob(absent).fetch(0, 6, bytes) == b"absent"
        await read(source)
    assert [seen.status for seen in one.seen] == [404, 206]  # other blobs are still asked of it


async def test_bytes_that_had_come_are_not_fetched_again(
    registries: tuple[Registry, ...], opened: Open
) -> None:
    one, _, home = registries
    one.faults.add("blob", Reset(70_000))
    async with opened(listing(one, home)) as source:
        await read(source, 0, 100_000)
    assert home.journal.bytes_sent["blob"] <= 100_000 - 65_536


async def test_wrong_bytes_are_asked_of_the_next_host(registries: tuple[Registry, ...], opened: Open) -> None:
    one, _, home = registries
    one.faults.add("blob", Corrupt(7), times=2)

    def check(data: memoryview) -> bytes:
        if sha256_digest(data) != sha256_digest(DATA[:100]):
            raise DigestMismatch("span", sha256_digest(DATA[:100]), sha256_digest(data))
        return bytes(data)

    async with opened(listing(one, home)) as source:
        assert await source.blob(LINK).fetch(0, 100, check) == DATA[:100]
        home.faults.add("blob", Corrupt(7))
        with pytest.raises(DigestMismatch):
            await source.blob(LINK).fetch(0, 100, check)
        assert await source.blob(LINK).fetch(0, 100, check) == DATA[:100]


async def test_a_consumer_of_pieces_that_refuses_is_not_given_them_again(
    registries: tuple[Registry, ...], opened: Open
) -> None:
    one, _, home = registries

    def refuse(_data: memoryview) -> None:
        raise DigestMismatch("layer", "this", "that")

    async with opened(listing(one, home)) as source:
        with pytest.raises(DigestMismatch):
            await source.blob(LINK).pull(refuse)
    assert home.seen == []


async def test_a_pull_goes_on_at_the_next_host(registries: tuple[Registry, ...], opened: Open) -> None:
    one, _, home = registries
    one.faults.add("blob", Reset(70_000))
    pieces: list[bytes] = []
    async with opened(listing(one, home)) as source:
        await source.blob(LINK).pull(lambda piece: pieces.append(bytes(piece)))
    assert b"".join(pieces) == DATA
    assert home.requests["GET", "blob"] == 1


async def test_a_reader_whose_time_ran_out_at_a_mirror_helps_the_next(
    registries: tuple[Registry, ...], opened: Open
) -> None:
    one, _, home = registries
    one.faults.add("blob", Stall(10), times=99)
    async with opened(listing(one, home)) as source:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, source)
            await trio.to_thread.run_sync(one.wait_stalled)
            nursery.cancel_scope.cancel()
        await read(source)
    assert one.requests["GET", "blob"] == 1
    assert home.requests["GET", "blob"] == 1


async def test_when_all_fail_all_have_been_asked(registries: tuple[Registry, ...], opened: Open) -> None:
    for registry in registries:
        registry.faults.add("blob", Status(500), times=99)
    async with opened(listing(*registries), retry=RetryPolicy(retries=0)) as source:
        for count in (1, 2):
            with pytest.raises(Unreachable, match=f"{registries[-1].host}|registry.example/app"):
                await read(source)
            assert [registry.requests["GET", "blob"] for registry in registries] == [count] * 3
