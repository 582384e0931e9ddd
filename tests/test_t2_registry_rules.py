"""The pure rules under the registry client: URLs, challenges, waiting, proxies, cutting bodies."""

import random
import time
from datetime import UTC, datetime

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from indexer.errors import FormatError
from lazyfs.errors import ConfigError, SourceError, Unreachable
from lazyfs.source.counters import Counters
from lazyfs.source.http.proxy import Proxy, ProxyRules, proxy_rules
from lazyfs.source.http.retry import Retries, RetryPolicy, Transient, parse_retry_after
from lazyfs.source.http.settings import Endpoint, SourceSettings, endpoint_of
from lazyfs.source.http.transfer import Cut, PieceSink, RangeSink, pour
from lazyfs.source.http.urls import Origin, is_link_local, lifetime_s, origin_of, redirect_target, shown
from lazyfs.source.registry.challenge import Challenge, bearer_challenge, offers_basic, parse_challenges

ORIGINS = {
    "https://host/x?y": Origin("https", "host", 443),
    "http://HOST:5000": Origin("http", "host", 5000),
    "https://user:pw@host:443/": Origin("https", "host", 443),
    "http://[::1]:80/": Origin("http", "::1", 80),
}


@pytest.mark.parametrize("url", ORIGINS)
def test_an_origin_is_scheme_host_and_port(url: str) -> None:
    assert origin_of(url) == ORIGINS[url]
    assert origin_of(str(origin_of(url))) == origin_of(url)


@pytest.mark.parametrize(
    "url",
    [
        *("", "host", "ftp://host", "http://", "http://host:x/", "http://[::1", "file:///etc/passwd"),
        *("http://a..b/", f"http://{64 * 'a'}.b/"),
    ],
)
def test_what_is_no_http_url_has_no_origin(url: str) -> None:
    with pytest.raises(SourceError):
        origin_of(url)


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_redirect_is_a_url_or_our_error(base: str, location: str) -> None:
    for url in (base, "https://host/path?q", "http://host"):
        try:
            target = redirect_target(url, location)
        except SourceError:
            continue
        assert target.isascii()
        assert not set(target) & set(" \r\n\t#")
        origin_of(target)


def test_a_signed_url_stays_as_it_was_signed() -> None:
    signed = "https://cdn.example/a%2Fb/c+d?X-Sig=%2f%7E~!$&'()*,;=:@&e=a b"
    assert redirect_target("https://host/v2/x", signed) == signed.replace(" ", "%20")
    assert redirect_target("https://host/v2/x?y", "../z?k=1#frag") == "https://host/z?k=1"
    assert redirect_target("https://host/v2/x", "//other/é") == "https://other/%C3%A9"


def test_what_is_shown_of_a_url_holds_no_secret() -> None:
    assert shown("https://user:pw@host:1/path?sig=s#f") == "https://host:1/path"
    assert shown("/v2/x?sig=s") == "/v2/x"
    assert shown("http://[") == "(unreadable URL)"


@pytest.mark.parametrize(
    ("host", "refused"),
    [
        ("169.254.169.254", True),
        ("169.254.0.1", True),
        ("fe80::1", True),
        ("fe80::1%eth0", True),
        ("::ffff:169.254.169.254", True),
        ("2852039166", True),
        ("0xa9.0xfe.43518", True),
        ("10.0.0.1", False),
        ("\0", False),
        ("127.0.0.1", False),
        ("host", False),
    ],
)
def test_link_local_addresses_are_known(host: str, refused: bool) -> None:
    assert is_link_local(host) is refused


NOW = datetime(2024, 1, 1, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("query", "seconds"),
    [
        ("", 300),
        ("X-Amz-Expires=1200", 1080),
        ("x-goog-expires=100", 90),
        (f"Expires={int(NOW) + 1000}", 900),
        ("se=2024-01-01T00%3A10%3A00Z", 540),
        ("X-Amz-Expires=604800", 3600),
        ("Expires=1", 10),
        ("X-Amz-Expires=-5", 300),
        ("X-Amz-Expires=" + "9" * 30, 300),
        ("se=soon", 300),
        ("se=9999-99-99", 300),
    ],
)
def test_a_signed_url_tells_how_long_it_lives(query: str, seconds: float) -> None:
    assert lifetime_s(f"https://cdn/x?{query}", NOW) == pytest.approx(seconds)


CHALLENGES = {
    'Bearer realm="https://a/t",service="s",scope="repository:x:pull,push"': [
        Challenge("bearer", {"realm": "https://a/t", "service": "s", "scope": "repository:x:pull,push"})
    ],
    'BEARER Realm = "a" , error="in\\"valid"': [Challenge("bearer", {"realm": "a", "error": 'in"valid'})],
    'Basic realm="r, with comma", Bearer realm=plain': [
        Challenge("basic", {"realm": "r, with comma"}),
        Challenge("bearer", {"realm": "plain"}),
    ],
    "Negotiate, Basic": [Challenge("negotiate", {}), Challenge("basic", {})],
    "": [],
    'realm="no scheme"': [],
    'Bearer realm="unfinished': [Challenge("bearer", {})],
}


@pytest.mark.parametrize("header", CHALLENGES)
def test_challenges_are_told_apart(header: str) -> None:
    assert parse_challenges([header]) == CHALLENGES[header]


def test_a_challenge_of_nothing_but_spaces_is_read_in_one_go() -> None:
    """Ten of them took ten seconds of the thread that answers everybody."""
    began = time.thread_time()
    assert len(parse_challenges(["Bearer" + " " * 8000 + '"'] * 10)) == 10
    assert time.thread_time() - began < 1


def test_several_headers_are_one_list() -> None:
    challenges = parse_challenges(['Basic realm="x"', 'Bearer realm="y",scope="a b"'])
    assert offers_basic(challenges)
    found = bearer_challenge(challenges)
    assert found
    assert (found.realm, found.service, found.scopes) == ("y", "", ("a", "b"))
    assert bearer_challenge(challenges[:1]) is None


@given(st.lists(st.text(alphabet='Bearscom="\\, \t/:é', max_size=80), max_size=3))
def test_any_header_gives_challenges(headers: list[str]) -> None:
    for challenge in parse_challenges(headers):
        assert challenge.scheme == challenge.scheme.lower()


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("5", 5.0),
        (" 120 ", 120.0),
        ("Mon, 01 Jan 2024 00:00:30 GMT", 30.0),
        ("Mon, 01 Jan 2024 00:00:30 -0000", 30.0),
        ("Sun, 31 Dec 2023 00:00:00 GMT", 0.0),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("9" * 40, None),
        ("Mon, 99 Jan 2024 00:00:30 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str, seconds: float | None) -> None:
    assert parse_retry_after(value, datetime.fromtimestamp(NOW, UTC)) == seconds


async def waits(policy: RetryPolicy, failures: list[Transient]) -> list[float]:
    """How long each wait after a failure takes."""
    retries = Retries(policy, Counters(), "it", "url")
    taken = []
    for failure in failures:
        before = trio.current_time()
        await retries.wait_after(failure)
        taken.append(trio.current_time() - before)
    return taken


async def test_waits_double_up_to_a_limit(autojump_clock: trio.abc.Clock) -> None:
    policy = RetryPolicy(retries=6, first_delay_s=1, most_delay_s=8)
    taken = await waits(policy, [Transient("x")] * 6)
    for seconds, most in zip(taken, (1, 2, 4, 8, 8, 8), strict=True):
        assert most / 2 <= seconds <= most


async def test_a_server_may_ask_for_a_longer_wait(autojump_clock: trio.abc.Clock) -> None:
    policy = RetryPolicy(first_delay_s=1, most_retry_after_s=60)
    taken = await waits(policy, [Transient("x", retry_after_s=wait) for wait in (30, 1000, 0)])
    assert taken[:2] == [pytest.approx(30), pytest.approx(60)]
    assert 2 <= taken[2] <= 4


async def test_progress_makes_patience_new(autojump_clock: trio.abc.Clock) -> None:
    counters = Counters()
    retries = Retries(RetryPolicy(retries=1), counters, "it", "url")
    for _ in range(5):
        await retries.wait_after(Transient("x"))
        retries.progressed()
    await retries.wait_after(Transient("x"))
    with pytest.raises(Unreachable, match="it: last; gave up after 2 attempts"):
        await retries.wait_after(Transient("last", status=503))
    assert counters.snapshot().retries == 6


async def test_a_wait_that_would_pass_the_deadline_is_not_begun(autojump_clock: trio.abc.Clock) -> None:
    with trio.fail_after(10):
        before = trio.current_time()
        with pytest.raises(Unreachable, match="no time is left"):
            await waits(RetryPolicy(), [Transient("x", retry_after_s=11)])
        assert trio.current_time() == before


def test_the_hub_and_loopback_have_their_own_ways() -> None:
    settings = SourceSettings()
    assert endpoint_of("docker.io", settings).base_url == "https://registry-1.docker.io/v2"
    assert endpoint_of("ghcr.io", settings).base_url == "https://ghcr.io/v2"
    for host in ("localhost", "localhost:5000", "127.0.0.1:5000", "127.9.9.9", "[::1]:5000"):
        assert endpoint_of(host, settings).base_url == f"http://{host}/v2"
        assert endpoint_of(host, SourceSettings(plain_http=False)).base_url == f"https://{host}/v2"
    assert endpoint_of("ghcr.io", SourceSettings(plain_http=True)).base_url == "http://ghcr.io/v2"


def test_a_mirror_adds_its_parameters() -> None:
    endpoint = Endpoint("m", "https://m/v2", "ns=docker.io")
    assert endpoint.url("/a/b") == "https://m/v2/a/b?ns=docker.io"
    assert endpoint.url("/a/b?n=1") == "https://m/v2/a/b?n=1&ns=docker.io"


HTTPS = Origin("https", "registry.example.com", 443)


def test_proxies_come_from_the_environment_that_is_given() -> None:
    rules = proxy_rules(
        {"https_proxy": "http://user:p%40ss@proxy:3128", "ALL_PROXY": "proxy2:8080", "HTTP_PROXY": "x"}
    )
    assert rules.https == Proxy("proxy", 3128, "Basic dXNlcjpwQHNz")
    assert rules.http == Proxy("proxy2", 8080)
    assert "dXNlcjpwQHNz" not in repr(rules)
    assert proxy_rules({}) == ProxyRules()
    for bad in ("socks5://p:1", "http://p:x", "https://p"):
        with pytest.raises(ConfigError, match="https_proxy"):
            proxy_rules({"HTTPS_PROXY": bad})


@pytest.mark.parametrize(
    ("exceptions", "direct"),
    [
        ("", False),
        ("*", True),
        ("example.com", True),
        (".example.com", True),
        ("*.example.com", True),
        ("registry.example.com", True),
        ("registry.example.com:443", True),
        ("registry.example.com:5000", False),
        ("ample.com", False),
        ("other.com, EXAMPLE.com ,", True),
        ("10.0.0.0/8", False),
    ],
)
def test_exceptions_are_reached_directly(exceptions: str, direct: bool) -> None:
    rules = proxy_rules({"https_proxy": "http://proxy", "NO_PROXY": exceptions})
    assert (rules.proxy_for(HTTPS) is None) is direct


def test_addresses_and_loopback_may_be_exceptions() -> None:
    rules = proxy_rules({"all_proxy": "http://proxy", "no_proxy": "10.0.0.0/8,192.168.1.5:80,[fd00::1]:80"})
    direct = [
        Origin("http", host, 80) for host in ("10.1.2.3", "192.168.1.5", "fd00::1", "localhost", "127.0.0.1")
    ]
    assert [rules.proxy_for(origin) for origin in direct] == [None] * 5
    assert rules.proxy_for(Origin("http", "11.1.2.3", 80)) == rules.http


class CutBody:
    """A body that comes in given pieces."""

    def __init__(self, data: bytes, cuts: list[int]) -> None:
        self._data = data
        self._cuts = cuts

    def readinto(self, view: memoryview) -> int:
        count = min(len(view), len(self._data), self._cuts.pop() if self._cuts else len(view))
        view[:count], self._data = self._data[:count], self._data[count:]
        return count


@given(
    st.binary(max_size=300),
    st.lists(st.integers(1, 50)),
    st.integers(0, 300),
    st.integers(0, 300),
)
def test_a_body_cut_anywhere_is_the_same(data: bytes, cuts: list[int], skip: int, length: int) -> None:
    skip, length = min(skip, len(data)), min(length, max(0, len(data) - skip))
    whole = skip + length == len(data)
    gathered, pieces = RangeSink(length), []
    pour(CutBody(data, list(cuts)), Cut(skip, length, whole), gathered)
    assert bytes(gathered.view) == data[skip : skip + length]
    sink = PieceSink(length, lambda piece: pieces.append(bytes(piece)))
    pour(CutBody(data, list(cuts)), Cut(skip, length, whole), sink)
    assert b"".join(pieces) == data[skip : skip + length]


def test_a_body_of_another_length_is_found_out() -> None:
    with pytest.raises(Transient, match="ended 2 bytes early"):
        pour(CutBody(b"abc", []), Cut(0, 5, whole=True), RangeSink(5))
    with pytest.raises(Transient, match="before the range"):
        pour(CutBody(b"abc", []), Cut(5, 1, whole=True), RangeSink(1))
    with pytest.raises(FormatError, match="more bytes"):
        pour(CutBody(b"abc", []), Cut(0, 2, whole=True), RangeSink(2))
    pour(CutBody(b"abc", []), Cut(0, 2, whole=False), RangeSink(2))


def test_a_piece_is_full_however_often_its_source_breaks() -> None:
    data = random.Random(5).randbytes(700_000)
    pieces: list[bytes] = []
    sink = PieceSink(len(data), lambda piece: pieces.append(bytes(piece)))
    while sink.taken < len(data):
        rest = data[sink.taken :]
        cut = Cut(0, min(len(rest), 99_999), whole=True)
        pour(CutBody(rest[: cut.length], []), cut, sink)
    assert b"".join(pieces) == data
    assert [len(piece) for piece in pieces] == [262_144, 262_144, 175_712]
