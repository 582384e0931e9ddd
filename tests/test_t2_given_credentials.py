"""Credentials that were given for a repository: tried in turn, and forgotten when they are taken back."""

from collections.abc import Collection
from itertools import count

import pytest
import trio

from lazyfs.errors import ConfigError, Unauthorized
from lazyfs.source.auth.credentials import Credentials, CredentialsInTurn, StaticCredentials
from lazyfs.source.auth.given import GivenCredentials
from lazyfs.source.registry.tokens import MOST_CANDIDATES
from tests.support.images import build_image
from tests.support.registry import Registry
from tests.support.registry_auth import Access
from tests.support.registry_client import layer_link, source_of
from tests.support.registry_faults import Status

DATA = bytes(range(256)) * 16
LINK = layer_link(DATA)
WRONG, OTHER = Credentials("user", "wr0ng-s3cret"), Credentials("other", "0ther-s3cret")
RIGHT = Credentials("user", "r1ght-s3cret")
MODES = ("basic", "token")


def guarded(mode: str) -> Registry:
    users = {RIGHT.username: RIGHT.password}
    registry = Registry(access=Access(mode=mode, users=users, anonymous_pull=False))
    registry.push("app", build_image([b"layer"]), "1")
    registry.put_blob("app", DATA)
    return registry


def given_for(registry: Registry, *credentials: Credentials) -> GivenCredentials:
    """The last one is tried first."""
    given = GivenCredentials()
    for each in credentials:
        given.give(f"{registry.host}/app", each)
    return given


async def read(registry: Registry, provider: object) -> bytes:
    async with source_of(registry, credentials=provider) as source:
        return await source.blob(LINK).fetch(0, len(DATA), bytes)


@pytest.mark.parametrize("mode", MODES)
async def test_what_is_refused_is_no_obstacle_for_what_is_not(mode: str) -> None:
    with guarded(mode) as registry:
        assert await read(registry, given_for(registry, RIGHT, OTHER, WRONG)) == DATA


async def test_a_token_that_allows_nothing_is_no_obstacle_either() -> None:
    with guarded("token") as registry:
        registry.access.users = {RIGHT.username: RIGHT.password, OTHER.username: OTHER.password}
        registry.access.powerless = frozenset({OTHER.username})
        given = given_for(registry, RIGHT, OTHER)
        async with source_of(registry, credentials=given) as source:
            blob = source.blob(LINK)
            assert await blob.fetch(0, 10, bytes) == DATA[:10]
            assert registry.requests["GET", "token"] == 2
            assert await blob.fetch(10, 20, bytes) == DATA[10:20]
            assert registry.requests["GET", "token"] == 2
            registry.access.expire_tokens()
            assert await blob.fetch(20, 30, bytes) == DATA[20:30]
        with pytest.raises(Unauthorized, match="HTTP 401"):
            await read(registry, given_for(registry, OTHER))


@pytest.mark.parametrize(
    "other", [Credentials(registry_token="n0thing"), Credentials(identity_token="n0body")]
)
async def test_other_kinds_of_credentials_give_way_too(other: Credentials) -> None:
    with guarded("token") as registry:
        assert await read(registry, given_for(registry, RIGHT, other)) == DATA


@pytest.mark.parametrize("mode", MODES)
async def test_what_is_configured_comes_after_what_is_given(mode: str) -> None:
    with guarded(mode) as registry:
        configured = StaticCredentials(registry.host, RIGHT)
        assert await read(registry, CredentialsInTurn((given_for(registry, WRONG), configured))) == DATA
        registry.journal.clear()
        turns = CredentialsInTurn((given_for(registry, RIGHT), StaticCredentials(registry.host, WRONG)))
        assert await read(registry, turns) == DATA
        assert registry.requests["GET", "blob"] == 2  # the wrong ones were not tried


@pytest.mark.parametrize("mode", MODES)
async def test_an_open_blob_goes_on_when_the_password_changes(mode: str) -> None:
    with guarded(mode) as registry:
        given = given_for(registry, RIGHT)
        async with source_of(registry, credentials=given) as source:
            blob = source.blob(LINK)
            assert await blob.fetch(0, 10, bytes) == DATA[:10]
            registry.access.users = {OTHER.username: OTHER.password}
            registry.access.expire_tokens()
            with pytest.raises(Unauthorized):
                await blob.fetch(10, 20, bytes)
            given.give(f"{registry.host}/app", OTHER)
            given.give(f"{registry.host}/app", WRONG)
            assert await blob.fetch(10, 20, bytes) == DATA[10:20]


@pytest.mark.parametrize("mode", MODES)
async def test_all_refused_ends_in_words_without_secrets(mode: str) -> None:
    with guarded(mode) as registry:
        with pytest.raises(Unauthorized, match="refused") as caught:
            await read(registry, given_for(registry, OTHER, WRONG))
        assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("status", [400, 404, 405])
async def test_an_identity_token_that_is_void_is_no_obstacle(status: int) -> None:
    with guarded("token") as registry:
        registry.faults.add("token", Status(status, {}, b'{"error": "invalid_grant"}'))
        assert (
            await read(registry, given_for(registry, RIGHT, Credentials(identity_token="v0id-s3cret")))
            == DATA
        )
        registry.faults.add("token", Status(status, {}, b'{"error": "invalid_grant"}'))
        registry.access.expire_tokens()
        with pytest.raises(Unauthorized, match="refused"):
            await read(registry, given_for(registry, Credentials(identity_token="v0id-s3cret")))


class Inventive:
    """Has new credentials whenever it is asked, as helpers may."""

    def __init__(self) -> None:
        self.numbers = count()

    async def lookup(self, *_: object, refused: Collection[Credentials] = ()) -> Credentials:
        del refused
        return Credentials("user", str(next(self.numbers)))


@pytest.mark.parametrize("mode", MODES)
async def test_there_is_an_end_to_trying(mode: str) -> None:
    with guarded(mode) as registry:
        with pytest.raises(Unauthorized):
            await read(registry, Inventive())
        tried = registry.requests["GET", "blob" if mode == "basic" else "token"]
        assert tried <= MOST_CANDIDATES + 1


class Unreadable:
    """Has credentials that are refused, and cannot say whether there are others."""

    async def lookup(self, _: str, __: str, refused: Collection[Credentials] = ()) -> Credentials:
        if refused:
            raise ConfigError("cannot read the credentials")
        return WRONG


@pytest.mark.parametrize("mode", MODES)
async def test_requests_go_on_where_credentials_cannot_be_looked_up(mode: str) -> None:
    with guarded(mode) as registry:
        if mode == "token":  # it is given one, which allows nothing
            registry.access.users = {WRONG.username: WRONG.password}
            registry.access.powerless = frozenset({WRONG.username})
        async with source_of(registry, credentials=Unreadable(), max_connections=1) as source:
            blob = source.blob(LINK)
            for _ in range(2):
                with trio.fail_after(10), pytest.raises(ConfigError, match="cannot read"):
                    await blob.fetch(0, 10, bytes)


async def test_they_are_for_their_repository_alone() -> None:
    given = GivenCredentials()
    assert given.give("a.example/app", RIGHT)
    assert await given.lookup("a.example", "app") == RIGHT
    assert await given.lookup("a.example", "app/more") is None
    assert await given.lookup("b.example", "app") is None


async def test_what_is_taken_back_is_gone() -> None:
    given = GivenCredentials()
    given.give("a.example/app", RIGHT)
    given.give("a.example/app", WRONG)
    assert given.take_back("a.example/app", WRONG)
    assert not given.take_back("a.example/app", WRONG)
    assert await given.lookup("a.example", "app") == RIGHT
    assert given.take_back("a.example/app", RIGHT)
    assert await given.lookup("a.example", "app") is None
    assert given.encoded() == b"{}"


async def test_what_was_given_last_is_first_also_when_it_is_not_new() -> None:
    given = GivenCredentials()
    assert [given.give("a.example/app", each) for each in (RIGHT, OTHER, RIGHT)] == [True, True, False]
    assert await given.lookup("a.example", "app") == RIGHT
    assert await given.lookup("a.example", "app", [RIGHT]) == OTHER


async def test_there_is_a_bound_for_each_repository_and_for_all() -> None:
    given = GivenCredentials()
    for number in range(5000):
        given.give(f"a.example/app{number}", RIGHT)
    for number in range(10):
        given.give("a.example/app", Credentials("user", str(number)))
    assert await given.lookup("a.example", "app0") is None
    assert await given.lookup("a.example", "app4999") == RIGHT
    refused = [Credentials("user", str(number)) for number in range(9, 5, -1)]
    assert await given.lookup("a.example", "app", refused[:3]) == refused[3]
    assert await given.lookup("a.example", "app", refused) is None


async def test_what_is_proved_makes_no_room_for_what_is_not() -> None:
    given = GivenCredentials()
    given.give("a.example/app", RIGHT)
    assert not given.give("a.example/app", RIGHT, proved=True)
    wrong = [Credentials("user", str(number)) for number in range(10)]
    for each in wrong:
        given.give("a.example/app", each)
    assert await given.lookup("a.example", "app") == wrong[-1]
    assert await given.lookup("a.example", "app", wrong) == RIGHT
    for each in wrong:
        given.give("a.example/app", each, proved=True)
    assert await given.lookup("a.example", "app", wrong) is None


async def test_they_travel_as_they_are() -> None:
    given = GivenCredentials()
    token, identity = Credentials(registry_token="t"), Credentials(identity_token="i")
    for name, credentials in (("a.example/a", RIGHT), ("a.example/a", token), ("b.example/b", identity)):
        given.give(name, credentials)
    again = GivenCredentials.decoded(given.encoded())
    assert await again.lookup("a.example", "a") == token
    assert await again.lookup("a.example", "a", [token]) == RIGHT
    assert await again.lookup("b.example", "b") == identity
    part = GivenCredentials.decoded(given.encoded(["b.example/b", "c.example/c"]))
    assert await part.lookup("b.example", "b") == identity
    assert await part.lookup("a.example", "a") is None


def test_their_repr_keeps_them_to_itself() -> None:
    given = GivenCredentials()
    given.give("a.example/app", RIGHT)
    assert "s3cret" not in repr(given)
