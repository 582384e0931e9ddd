"""Logging in: tokens, passwords, redirects with signatures; once for all readers, and never in the open."""

import base64
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from lazyfs.errors import NotFound, SourceError, Unauthorized, Unreachable
from lazyfs.oci.platform import parse_platform
from lazyfs.oci.reference import parse_reference
from lazyfs.source.auth.credentials import Credentials, NoCredentials, StaticCredentials
from lazyfs.source.http.retry import RetryPolicy
from lazyfs.source.open import open_registry
from lazyfs.source.registry.source import RegistrySource
from tests.support.images import build_image
from tests.support.registry import Registry
from tests.support.registry_auth import Access
from tests.support.registry_client import SETTINGS, image_of, layer_link, source_of
from tests.support.registry_faults import Header, StallHead, Status
from tests.support.registry_tls import TestAuthority, make_authority

AMD64 = parse_platform("linux/amd64")
DATA = bytes(range(256)) * 400
LINK = layer_link(DATA)
IMAGE = build_image([b"layer"])
PASSWORD = "pass:word-s3cret"
REFRESH = "refresh-s3cret"
USERS = {"user": PASSWORD}
READERS = 64


def filled(**options: object) -> Registry:
    registry = Registry(**options)  # type: ignore[arg-type]
    registry.push("app", IMAGE, "1")
    registry.put_blob("app", DATA)
    return registry


@asynccontextmanager
async def known_as(
    registry: Registry, credentials: Credentials, **settings: object
) -> AsyncIterator[RegistrySource]:
    provider = StaticCredentials(registry.host, credentials)
    async with source_of(registry, credentials=provider, **settings) as source:
        yield source


async def read_by_all(source: RegistrySource) -> None:
    """Let many readers read at once, each another range."""
    blob = source.blob(LINK)

    async def read(start: int) -> None:
        assert await blob.fetch(start, start + 1000, bytes) == DATA[start : start + 1000]

    async with trio.open_nursery() as nursery:
        for number in range(READERS):
            nursery.start_soon(read, number * 1000)


@pytest.fixture
def guarded() -> Iterator[Registry]:
    """A registry with tokens, whose blobs lie in storage elsewhere."""
    with filled(cdn=True, access=Access(mode="token", users=USERS)) as registry:
        yield registry


async def test_readers_share_one_token_and_one_redirect(guarded: Registry) -> None:
    async with source_of(guarded) as source:
        await read_by_all(source)
        statistics = source.statistics()
    assert guarded.requests["GET", "token"] == 1
    assert guarded.requests["GET", "blob"] == 2  # without and with a token
    assert guarded.requests["GET", "cdn"] == READERS
    assert (statistics.token_requests, statistics.redirects, statistics.retries) == (1, 1, 0)


async def test_readers_renew_a_dead_signature_once(guarded: Registry) -> None:
    async with source_of(guarded) as source:
        await read_by_all(source)
        guarded.cdn.expire()
        guarded.journal.clear()
        await read_by_all(source)
    assert guarded.requests["GET", "blob"] == 1
    assert guarded.requests["GET", "token"] == 0


async def test_readers_renew_a_dead_token_once() -> None:
    with filled(access=Access(mode="token")) as registry:
        async with source_of(registry) as source:
            await read_by_all(source)
            registry.access.expire_tokens()
            registry.journal.clear()
            await read_by_all(source)
        assert registry.requests["GET", "token"] == 1
        assert registry.requests["GET", "blob"] <= 2 * READERS


async def test_a_dead_signature_and_a_dead_token_at_once(guarded: Registry) -> None:
    async with source_of(guarded) as source:
        await read_by_all(source)
        guarded.cdn.expire()
        guarded.access.expire_tokens()
        guarded.journal.clear()
        await read_by_all(source)
    assert guarded.requests["GET", "token"] == 1
    assert guarded.requests["GET", "blob"] == 2


@pytest.mark.parametrize("kind", ["blob", "cdn", "token"])
async def test_readers_of_what_hangs_give_up_together(guarded: Registry, kind: str) -> None:
    guarded.faults.add(kind, StallHead(), times=99)
    impatient = RetryPolicy(retries=0)
    async with source_of(guarded, stall_timeout_s=0.5, retry=impatient) as source:
        if kind != "token":
            await source.resolve()
        blob = source.blob(LINK)

        async def read() -> None:
            with pytest.raises(Unreachable, match="timed out"):
                await blob.fetch(0, 10, bytes)

        async with trio.open_nursery() as nursery:
            for _ in range(READERS):
                nursery.start_soon(read)
    assert sum(count for (_, asked), count in guarded.requests.items() if asked == kind) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
async def test_storage_that_refuses_is_looked_up_again_once(guarded: Registry, status: int) -> None:
    async with source_of(guarded) as source:
        await source.blob(LINK).fetch(0, 1, bytes)
        guarded.journal.clear()
        guarded.faults.add("cdn", Status(status))
        assert await source.blob(LINK).fetch(5, 9, bytes) == DATA[5:9]
        assert guarded.requests["GET", "blob"] == 1
        guarded.faults.add("cdn", Status(status), times=2)
        with pytest.raises(SourceError, match=f"HTTP {status}"):
            await source.blob(LINK).fetch(5, 9, bytes)


async def test_a_signature_is_not_used_past_its_time(guarded: Registry, mock_clock: MockClock) -> None:
    async with source_of(guarded) as source:
        await source.blob(LINK).fetch(0, 1, bytes)
        mock_clock.jump(269)
        await source.blob(LINK).fetch(0, 1, bytes)
        assert source.statistics().redirects == 1
        mock_clock.jump(2)  # X-Amz-Expires is 300, a tenth is left
        await source.blob(LINK).fetch(0, 1, bytes)
        assert source.statistics().redirects == 2


@pytest.mark.parametrize(("said", "lives"), [(300, 240), (None, 48), (5, 48), (1000, 800)])
async def test_a_token_is_renewed_before_it_dies(said: int | None, lives: int, mock_clock: MockClock) -> None:
    with filled(access=Access(mode="token", expires_in=said)) as registry:
        async with source_of(registry) as source:
            await source.resolve()
            mock_clock.jump(lives - 1)
            await source.resolve()
            assert registry.requests["GET", "token"] == 1
            mock_clock.jump(2)
            await source.resolve()
            assert registry.requests["GET", "token"] == 2
            assert [seen.status for seen in registry.seen if seen.kind == "manifest"] == [401, 200, 200, 200]


async def test_a_token_may_be_called_access_token() -> None:
    with filled(access=Access(mode="token", token_field="access_token")) as registry:
        async with source_of(registry) as source:
            assert (await source.resolve()).digest == IMAGE.digest


async def test_a_password_goes_to_the_token_service_by_get(guarded: Registry) -> None:
    guarded.access.anonymous_pull = False
    async with known_as(guarded, Credentials("user", PASSWORD)) as source:
        await image_of(source, AMD64)
    (asked,) = [seen for seen in guarded.seen if seen.kind == "token"]
    assert asked.method == "GET"
    assert "scope=repository%3Aapp%3Apull" in asked.target
    assert "service=test+registry" in asked.target
    assert "account=user" in asked.target
    assert (
        base64.b64decode(asked.headers["authorization"].removeprefix("Basic ")).decode() == f"user:{PASSWORD}"
    )


async def test_an_identity_token_goes_to_the_token_service_by_post(guarded: Registry) -> None:
    guarded.access.anonymous_pull = False
    guarded.access.identity_tokens = {REFRESH: "user"}
    async with known_as(guarded, Credentials(identity_token=REFRESH)) as source:
        await image_of(source, AMD64)
    (asked,) = [seen for seen in guarded.seen if seen.kind == "token"]
    assert asked.method == "POST"
    assert "authorization" not in asked.headers
    assert REFRESH not in asked.target


async def test_a_registry_token_is_used_as_it_is(guarded: Registry) -> None:
    status, said = guarded.access.answer("GET", "scope=repository:app:pull", b"", "")
    assert status == 200
    async with known_as(guarded, Credentials(registry_token=said["token"])) as source:
        await image_of(source, AMD64)
    assert guarded.requests["GET", "token"] == 0


async def test_a_password_alone_will_do_where_basic_is_asked() -> None:
    with filled(access=Access(mode="basic", users=USERS)) as registry:
        async with known_as(registry, Credentials("user", PASSWORD)) as source:
            await image_of(source, AMD64)
        assert [seen.status for seen in registry.seen] == [401, 200, 200]


BAD = {
    "nobody, basic": ("basic", Credentials(), "wants a user and password"),
    "wrong password, basic": ("basic", Credentials("user", "wr0ng-s3cret"), "refused"),
    "an identity token, basic": ("basic", Credentials(identity_token=REFRESH), "wants a user and password"),
    "nobody, token": ("token", Credentials(), "refused"),
    "wrong password, token": ("token", Credentials("user", "wr0ng-s3cret"), "UNAUTHORIZED"),
    "wrong identity token": ("token", Credentials(identity_token="wr0ng-s3cret"), "UNAUTHORIZED"),
    "wrong registry token": ("token", Credentials(registry_token="wr0ng-s3cret"), "refused"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("cdn", [False, True])
async def test_wrong_credentials_are_refused_without_being_told(
    case: str, cdn: bool, caplog: pytest.LogCaptureFixture
) -> None:
    mode, credentials, words = BAD[case]
    access = Access(mode=mode, users=USERS, anonymous_pull=False)
    with filled(cdn=cdn, access=access) as registry, caplog.at_level(logging.DEBUG):
        provider = (
            NoCredentials() if credentials == Credentials() else StaticCredentials(registry.host, credentials)
        )
        async with source_of(registry, credentials=provider) as source:
            for ask in (source.resolve, lambda: source.blob(LINK).fetch(0, 1, bytes)):
                with pytest.raises(Unauthorized, match=words) as error:
                    await ask()  # type: ignore[operator]
                assert "s3cret" not in str(error.value) + repr(error.value) + repr(source)
        assert "s3cret" not in caplog.text
        assert len(registry.seen) < 12


async def test_no_log_shows_a_secret(guarded: Registry, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        async with known_as(guarded, Credentials("user", PASSWORD)) as source:
            await read_by_all(source)
    for secret in (
        PASSWORD,
        base64.b64encode(f"user:{PASSWORD}".encode()).decode(),
        "token-1",
        "signature-1",
    ):
        assert secret not in caplog.text
        assert secret not in repr(source) + repr(SETTINGS)


def test_credentials_have_a_blank_repr() -> None:
    assert repr(Credentials("user", PASSWORD, REFRESH, "t")) == "<Credentials>"
    assert "s3cret" not in repr(StaticCredentials("host", Credentials("user", PASSWORD)))


@pytest.mark.parametrize(
    "challenge",
    [
        None,
        "Negotiate",
        'Digest realm="x"',
        "Bearer",
        'Bearer service="x"',
        'Bearer realm="ftp://x/"',
        'Bearer realm="http://a..b/"',
        'Bearer realm="http://xn--a.b/"',
        'Bearer realm="http://a-\xb0.b/"',
        "=,=",
    ],
)
async def test_a_challenge_that_helps_nobody_is_an_error(guarded: Registry, challenge: str | None) -> None:
    headers = {"WWW-Authenticate": challenge} if challenge else {}
    guarded.access.mode = "open"
    guarded.faults.add("manifest", Status(401, headers))
    async with source_of(guarded) as source:
        with pytest.raises(SourceError):
            await source.resolve()


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"token": 1}', b'{"token": "a\\nb"}', b'{"token":"t","expires_in":-1}']
)
async def test_a_token_service_that_talks_nonsense_is_an_error(guarded: Registry, body: bytes) -> None:
    guarded.faults.add("token", Status(200, {}, body))
    async with source_of(guarded) as source:
        with pytest.raises(SourceError, match="token"):
            await source.resolve()


async def test_a_token_service_is_asked_again_when_it_is_busy(guarded: Registry) -> None:
    guarded.faults.add("token", Status(503))
    guarded.faults.add("token", Status(429, {"Retry-After": "0"}))
    async with source_of(guarded) as source:
        assert (await source.resolve()).digest == IMAGE.digest
        guarded.access.expire_tokens()
        guarded.faults.add("token", Status(503))
        assert await source.blob(LINK).fetch(0, 9, bytes) == DATA[:9]


async def test_a_second_refusal_is_final(guarded: Registry) -> None:
    async with source_of(guarded) as source:
        await source.resolve()
        guarded.journal.clear()
        challenge = {"WWW-Authenticate": f'Bearer realm="{guarded.base_url}/token"'}
        guarded.faults.add("manifest", Status(401, challenge), times=2)
        with pytest.raises(Unauthorized):
            await source.resolve()
    assert guarded.requests["GET", "manifest"] == 2
    assert guarded.requests["GET", "token"] == 1


async def test_redirects_of_the_token_service_do_not_take_the_password_along() -> None:
    with (
        Registry(access=Access(mode="token")) as other,
        filled(access=Access(mode="token", users=USERS)) as registry,
    ):
        target = f"{other.base_url}/token?scope=repository:app:pull"
        registry.faults.add("token", Status(307, {"Location": target}))
        async with known_as(registry, Credentials("user", PASSWORD)) as source:
            with pytest.raises(Unauthorized):
                await source.resolve()
        assert "authorization" not in other.seen[0].headers


async def test_a_realm_may_not_be_where_machines_keep_their_credentials(guarded: Registry) -> None:
    guarded.access.realm = "http://169.254.169.254/latest/token"
    async with source_of(guarded) as source:
        with pytest.raises(SourceError, match="link-local"):
            await source.resolve()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> TestAuthority:
    return make_authority(tmp_path_factory.mktemp("tls"))


async def test_a_registry_is_reached_over_tls(authority: TestAuthority) -> None:
    access = Access(mode="token", users=USERS)
    with filled(cdn=True, access=access, tls=authority.server_context()) as registry:
        provider = Credentials("user", PASSWORD)
        async with known_as(registry, provider, plain_http=False, ca_file=authority.ca_file) as source:
            await image_of(source, AMD64)
            await read_by_all(source)
            pieces: list[bytes] = []
            await source.blob(LINK).pull(lambda piece: pieces.append(bytes(piece)))
        assert b"".join(pieces) == DATA


@pytest.mark.parametrize("want", ["manifest", "blob"])
async def test_an_unknown_authority_is_not_trusted(authority: TestAuthority, want: str) -> None:
    with filled(tls=authority.server_context()) as registry:
        async with source_of(registry, plain_http=False) as source:
            blob = source.blob(LINK)
            with pytest.raises(Unreachable, match=r"not trusted \(.*\); name the authority .* `ca_file`"):
                await (source.resolve() if want == "manifest" else blob.fetch(0, 1, bytes))
            assert source.statistics().retries == 0
        assert registry.seen == []


async def test_a_client_shows_its_certificate(authority: TestAuthority) -> None:
    with filled(tls=authority.server_context(want_client=True)) as registry:
        pair = (authority.client_cert, authority.client_key)
        async with source_of(
            registry, plain_http=False, ca_file=authority.ca_file, client_cert=pair
        ) as source:
            await image_of(source, AMD64)
        async with source_of(registry, plain_http=False, ca_file=authority.ca_file) as source:
            with pytest.raises(Unreachable):
                await source.resolve()


async def test_a_registry_with_tls_gives_nothing_away_to_http(
    authority: TestAuthority,
) -> None:
    access = Access(mode="token", users=USERS)
    with (
        Registry(access=Access(mode="token")) as plain,
        filled(access=access, tls=authority.server_context()) as registry,
    ):
        settings = {"plain_http": False, "ca_file": authority.ca_file}
        access.realm = f"{plain.base_url}/token"
        async with known_as(registry, Credentials("user", PASSWORD), **settings) as source:
            with pytest.raises(Unauthorized, match="does not use https"):
                await source.resolve()
        access.mode = "open"
        registry.faults.add("blob", Status(307, {"Location": f"{plain.base_url}/v2/x"}))
        async with source_of(registry, **settings) as source:
            with pytest.raises(SourceError, match="from https to http"):
                await source.blob(LINK).fetch(0, 1, bytes)
        assert plain.seen == []


async def test_plain_http_is_spoken_where_it_is_asked_for(authority: TestAuthority) -> None:
    with filled() as registry:
        async with source_of(registry, plain_http=False, ca_file=authority.ca_file) as source:
            with pytest.raises(Unreachable):
                await source.resolve()
        async with source_of(registry, plain_http=True) as source:
            await source.resolve()


async def test_a_registry_that_refuses_by_hiding_is_reported_as_it_answers(guarded: Registry) -> None:
    async with open_registry(parse_reference(f"{guarded.host}/private:1"), SETTINGS) as source:
        with pytest.raises(NotFound):
            await source.resolve()
        guarded.faults.add("manifest", Status(403))
        with pytest.raises(Unauthorized):
            await source.resolve()


async def test_cookies_are_never_sent_back(guarded: Registry) -> None:
    guarded.faults.add("manifest", Header("Set-Cookie", "session=s3cret; Path=/"), times=9)
    async with source_of(guarded) as source:
        await image_of(source, AMD64)
        await read_by_all(source)
    assert not any("cookie" in seen.headers for seen in guarded.seen)
