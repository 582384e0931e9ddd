"""Authorization for one registry: what to send, and how to get it when the registry says 401.

Rules: distribution's token authentication (`docs/spec/auth/token`, `oauth`): GET with Basic for a user and
password or for nobody, POST for an identity token. A token serves all tasks; one of them fetches it.
"""

import base64
import math
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import trio
from msgspec import Struct

from indexer.errors import FormatError
from lazyfs.errors import SourceError, Unauthorized
from lazyfs.oci.json_fields import parse_object
from lazyfs.source.auth.credentials import Credentials, CredentialsProvider
from lazyfs.source.counters import Counters
from lazyfs.source.http.answers import failure
from lazyfs.source.http.control import ControlClient, Reply
from lazyfs.source.http.settings import Endpoint
from lazyfs.source.http.turns import Turns
from lazyfs.source.http.urls import MAX_REDIRECTS, REDIRECTS, origin_of, redirect_target, shown
from lazyfs.source.registry.challenge import BearerChallenge, bearer_challenge, offers_basic, parse_challenges

MIN_TOKEN_LIFETIME_S: Final = 60  # "for compatibility ... tokens must be good for at least 60 seconds"
MAX_TOKEN_LIFETIME_S: Final = 86_400
MAX_TOKEN_BYTES: Final = 1 << 20
CLIENT_ID: Final = "lazyfs"
_REFUSED_POST: Final = frozenset({400, 404, 405})
"""How an identity token may be refused: it is void (RFC 6749, section 5.2), or the service takes none."""
MOST_CANDIDATES: Final = 8
"""Credentials that are tried for one request at most: helpers may make new ones each time."""


class Grant(Struct, frozen=True):
    """What the registry accepted, or may.

    Attributes:
        header: the Authorization header.
        renew_at: trio time from which a new one is fetched first; infinity for what does not expire.
        challenge: how to get the next; None for what needs no token service.
        credentials: by which it was got; None for nobody's.
    """

    header: str
    renew_at: float
    challenge: BearerChallenge | None
    credentials: Credentials | None

    def __repr__(self) -> str:
        return f"<Grant, to be renewed at {self.renew_at}>"


class Authenticator:
    """Authorization headers for a repository at one endpoint.

    Args:
        endpoint: where, and whose credentials.
        repository: path in the registry, for namespaced credentials.
        provider: looks credentials up, each time they are needed.
        control: talks to the token service.
        counters: where token requests are counted.
        for_login: ask the token service for an identity token too.

    Attributes:
        identity_token: what the token service gave for a password, to be kept instead of it; or "".
    """

    def __init__(
        self,
        endpoint: Endpoint,
        repository: str,
        provider: CredentialsProvider,
        control: ControlClient,
        counters: Counters,
        *,
        for_login: bool = False,
    ) -> None:
        self.identity_token = ""
        self._for_login = for_login
        self._endpoint = endpoint
        self._repository = repository
        self._provider = provider
        self._control = control
        self._counters = counters
        self._grants: dict[str, Grant] = {}
        self._recent: OrderedDict[str, Credentials | None] = OrderedDict()  # by the headers made of them
        self._turns: dict[str, Turns] = {}

    def __repr__(self) -> str:
        return f"<Authenticator for {self._endpoint.registry}, {len(self._grants)} grants>"

    @property
    def was_asked(self) -> bool:
        """Whether the registry wanted to know who we are, and accepted to be told."""
        return bool(self._grants)

    async def authorization(self, scope: str) -> str:
        """The header to send for a scope; "" as long as nobody has asked for one.

        Raises:
            Unauthorized, SourceError, Transient: as for `renew`, when a token is about to expire.
        """
        grant = self._grants.get(scope)
        if grant is None:
            return ""
        if grant.challenge and trio.current_time() >= grant.renew_at:
            return await self._renewed(scope, (grant.header,), grant.challenge)
        return grant.header

    async def has_others(self, rejected: Sequence[str]) -> bool:
        """Whether there are other credentials than those that were tried for one request.

        Args:
            rejected: the headers that were sent; the first may be from earlier, and only have grown old.
        """
        tried = self._behind(rejected[1:])
        may_go_on = bool(tried) and len(rejected) <= MOST_CANDIDATES
        return may_go_on and await self._next(tried) is not None

    async def renew(self, scope: str, challenge_headers: list[str], rejected: Sequence[str]) -> str:
        """A header to try after a 401; where another task already has one, that one.

        Args:
            scope: what is to be allowed.
            challenge_headers: the values of `WWW-Authenticate`.
            rejected: the headers that were sent, as for `has_others`; "" for none.

        Raises:
            Unauthorized: there is nothing better to send.
            SourceError: the token service gave no sense.
            Transient: it failed for now.
        """
        challenges = parse_challenges(challenge_headers)
        bearer = bearer_challenge(challenges)
        if bearer:
            return await self._renewed(scope, rejected, bearer)
        if not offers_basic(challenges):
            raise Unauthorized(
                f"{self._endpoint.registry}: asks for a login that is not supported; Basic and Bearer are",
                status=401,
            )
        async with self._turn(scope):
            grant = self._grants.get(scope)
            if grant is None or grant.header in rejected:
                grant = self._keep(scope, await self._login(rejected))
            return grant.header

    async def _login(self, rejected: Collection[str]) -> Grant:
        """By the first user and password that were not rejected."""
        passed: list[Credentials] = []
        while credentials := await self._next(passed):
            if credentials.password and (header := _basic(credentials)) not in rejected:
                return Grant(header, math.inf, None, credentials)
            passed.append(credentials)
        if any(credentials.password for credentials in passed):
            raise self._refused()
        raise Unauthorized(
            f"{self._endpoint.registry}: wants a user and password; "
            f"log in: lazyfs login {self._endpoint.registry}",
            status=401,
        )

    async def _renewed(self, scope: str, rejected: Sequence[str], challenge: BearerChallenge) -> str:
        async with self._turn(scope):
            grant = self._grants.get(scope)
            if grant is None or grant.header in rejected:
                grant = self._keep(scope, await self._fetch(scope, rejected, challenge))
            return grant.header

    def _keep(self, scope: str, grant: Grant) -> Grant:
        self._grants[scope] = grant
        self._recent[grant.header] = grant.credentials
        while len(self._recent) > 2 * MOST_CANDIDATES:
            self._recent.popitem(last=False)
        return grant

    def _behind(self, headers: Iterable[str]) -> list[Credentials]:
        """The credentials that headers of late were made of."""
        return list(dict.fromkeys(filter(None, map(self._recent.get, headers))))

    def _turn(self, scope: str) -> AbstractAsyncContextManager[None]:
        return self._turns.setdefault(scope, Turns()).take()

    async def _next(self, refused: Collection[Credentials]) -> Credentials | None:
        """Who we may be, if not these; None for nobody."""
        if len(refused) == MOST_CANDIDATES:
            return None
        return await self._provider.lookup(self._endpoint.registry, self._repository, refused)

    def _refused(self) -> Unauthorized:
        registry = self._endpoint.registry
        return Unauthorized(
            f"{registry}: the credentials were refused; log in anew: lazyfs login {registry}", status=401
        )

    async def _fetch(self, scope: str, rejected: Sequence[str], challenge: BearerChallenge) -> Grant:
        """A token by the first credentials that are not refused; else the refusal of the first."""
        refused = self._behind(rejected[1:])
        credentials = await self._next(refused)
        refusals: list[Unauthorized] = []
        while credentials or not refused:
            try:
                return await self._granted(credentials, scope, rejected, challenge)
            except Unauthorized as refusal:
                if credentials is None:
                    raise
                refusals.append(refusal)
            refused.append(credentials)
            credentials = await self._next(refused)
        raise refusals[0] if refusals else self._refused()

    async def _granted(
        self,
        credentials: Credentials | None,
        scope: str,
        rejected: Collection[str],
        challenge: BearerChallenge,
    ) -> Grant:
        """A token from the service that the challenge names."""
        if credentials and credentials.registry_token:
            header = f"Bearer {credentials.registry_token}"
            if header in rejected:
                raise self._refused()
            return Grant(header, math.inf, None, credentials)
        self._check_realm(challenge.realm)
        scopes = sorted({scope, *challenge.scopes} - {""})
        if credentials and credentials.identity_token:
            reply = await self._post(challenge, scopes, credentials)
            if reply.status in _REFUSED_POST:
                raise self._refused()
        else:
            reply = await self._get(challenge, scopes, credentials)
        return self._grant(reply, challenge, credentials)

    def _check_realm(self, realm: str) -> None:
        """Credentials go over TLS, unless the user chose http for the registry itself."""
        chosen = origin_of(self._endpoint.base_url).scheme
        if origin_of(realm).scheme == "http" and chosen != "http":
            raise Unauthorized(
                f"{self._endpoint.registry}: its token service {shown(realm)} does not use https: "
                "no password is sent there",
                status=401,
            )

    async def _get(
        self, challenge: BearerChallenge, scopes: list[str], credentials: Credentials | None
    ) -> Reply:
        parts = urlsplit(challenge.realm)
        query = parse_qsl(parts.query, keep_blank_values=True)
        query += [("service", challenge.service)] if challenge.service else []
        query += [("scope", scope) for scope in scopes]
        query += [("account", credentials.username)] if credentials else []
        query += [("client_id", CLIENT_ID), ("offline_token", "true")] if self._for_login else []
        url = urlunsplit(parts._replace(query=urlencode(query), fragment=""))
        headers = {"Authorization": _basic(credentials)} if credentials else {}
        home = origin_of(url)
        for _ in range(MAX_REDIRECTS):
            allowed = headers if origin_of(url) == home else {}
            reply = await self._ask("GET", url, allowed)
            if reply.status not in REDIRECTS:
                break
            url = redirect_target(url, reply.header("location"))
        return reply

    async def _post(self, challenge: BearerChallenge, scopes: list[str], credentials: Credentials) -> Reply:
        form = {
            "grant_type": "refresh_token",
            "refresh_token": credentials.identity_token,
            "service": challenge.service,
            "scope": " ".join(scopes),
            "client_id": CLIENT_ID,
        }
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        return await self._ask("POST", challenge.realm, headers, urlencode(form).encode())

    async def _ask(
        self, method: str, url: str, headers: dict[str, str], content: bytes | None = None
    ) -> Reply:
        self._counters.add("token_requests")
        return await self._control.exchange(method, url, headers, content=content, max_bytes=MAX_TOKEN_BYTES)

    def _grant(self, reply: Reply, challenge: BearerChallenge, credentials: Credentials | None) -> Grant:
        """The token in the service's answer."""
        if reply.status != 200:
            raise failure(reply, f"token for {self._endpoint.registry}/{self._repository}")
        try:
            answer = parse_object(reply.body, "answer of the token service")
            token = answer.text("token", "") or answer.text("access_token", "")
            self.identity_token = answer.text("refresh_token", "") if self._for_login else ""
            lifetime_s = answer.number("expires_in") if "expires_in" in answer else MIN_TOKEN_LIFETIME_S
        except FormatError as error:
            raise SourceError(f"{shown(reply.url)}: {error.what}", url=shown(reply.url)) from None
        if not token or not token.isascii() or not token.isprintable():
            raise SourceError(f"{shown(reply.url)}: the answer holds no token", url=shown(reply.url))
        lifetime_s = min(max(lifetime_s, MIN_TOKEN_LIFETIME_S), MAX_TOKEN_LIFETIME_S)
        return Grant(f"Bearer {token}", trio.current_time() + lifetime_s * 0.8, challenge, credentials)


def _basic(credentials: Credentials) -> str:
    pair = f"{credentials.username}:{credentials.password}"
    return "Basic " + base64.b64encode(pair.encode()).decode()
