"""One host that serves one repository: requests with authorization, redirects and retries."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeVar

from lazyfs.errors import Unreachable
from lazyfs.source.counters import Counters
from lazyfs.source.http.answers import Answer, failure
from lazyfs.source.http.control import MAX_REPLY_BYTES, ControlClient, Reply
from lazyfs.source.http.pool import ContentAnswer, RangeClient
from lazyfs.source.http.retry import RETRIABLE_STATUSES, Retries, RetryPolicy, Transient
from lazyfs.source.http.settings import Capability, Endpoint
from lazyfs.source.http.urls import MAX_REDIRECTS, REDIRECTS, origin_of, redirect_target, shown
from lazyfs.source.registry.places import Rest
from lazyfs.source.registry.tokens import Authenticator

A = TypeVar("A", bound=Answer)

PULL: Final = "pull"


class Host:
    """A repository at one endpoint.

    Args:
        endpoint: where.
        repository: path in the registry; "" for the registry as a whole, as at a login.
        authenticator: for this endpoint and repository.
        control: for documents.
        ranges: for blobs.
        policy: how patient to be.
        counters: where redirects and retries are counted.

    Attributes:
        rest: whether to leave this host alone, where others have the same.
        policy: how patient to be.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        repository: str,
        authenticator: Authenticator,
        control: ControlClient,
        ranges: RangeClient,
        policy: RetryPolicy,
        counters: Counters,
    ) -> None:
        self._endpoint = endpoint
        self._repository = repository
        self._origin = origin_of(endpoint.base_url)
        self._authenticator = authenticator
        self._control = control
        self._ranges = ranges
        self._headers = dict(endpoint.headers)
        self._counters = counters
        self._answered = False
        self.policy = policy
        self.rest = Rest(str(self._origin))

    def __repr__(self) -> str:
        return f"<Host {shown(self._endpoint.base_url)} for {self._repository}>"

    @property
    def name(self) -> str:
        """The registry and repository, for messages."""
        return f"{self._endpoint.registry}/{self._repository}"

    def can(self, capability: Capability) -> bool:
        """Whether this host is to be asked for such things."""
        return capability in self._endpoint.capabilities

    def url(self, path: str) -> str:
        """The URL of a path below the repository, as "/blobs/sha256:…"."""
        return self._endpoint.url(f"/{self._repository}{path}")

    async def request(
        self,
        method: str,
        path: str,
        what: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        actions: str = PULL,
        max_bytes: int = MAX_REPLY_BYTES,
        patient: bool = True,
    ) -> Reply:
        """Ask for something below the repository; the answer, whatever its status, unless it is transient.

        Args:
            method: GET and HEAD follow redirects, others do not.
            path: as for `url`, or a whole URL at this endpoint.
            what: what is wanted, for messages.
            headers: further headers.
            content: the body to send.
            actions: what the token is to allow: "pull", or "pull,push".
            max_bytes: bound of the answer's body.
            patient: whether to try again where nobody listens.

        Raises:
            Unauthorized: other credentials are needed.
            Unreachable: no answer, after retries.
            SourceError: a redirect leads nowhere good.
            LimitExceeded: the body is longer than `max_bytes`.
        """
        url = path if "://" in path else self.url(path)
        retries = Retries(self.policy, self._counters, what, shown(url))
        while True:
            try:
                reply = await self._once(method, url, what, headers or {}, content, actions, max_bytes)
            except Transient as error:
                if error.refused and not self._answered:
                    retries.hurry(patient=patient)
                await retries.wait_after(error)
            else:
                self._answered = True
                return reply

    async def _once(
        self,
        method: str,
        url: str,
        what: str,
        headers: Mapping[str, str],
        content: bytes | None,
        actions: str,
        max_bytes: int,
    ) -> Reply:
        for _ in range(MAX_REDIRECTS + 1):

            async def send(extra: Mapping[str, str], url: str = url) -> Reply:
                return await self._control.exchange(
                    method, url, {**headers, **extra}, content=content, max_bytes=max_bytes
                )

            reply = await self.authorised(url, send, actions)
            if reply.status in RETRIABLE_STATUSES:
                raise failure(reply, what)
            if reply.status not in REDIRECTS or method not in ("GET", "HEAD"):
                return reply
            self._counters.add("redirects")
            url = redirect_target(url, reply.header("location"))
        raise Unreachable(f"{what}: more than {MAX_REDIRECTS} redirects", url=shown(url))

    async def prepare(self, connections: int) -> None:
        """See that connections are open for ranges that will be asked for soon."""
        await self._ranges.prepare(self._endpoint.base_url, connections)

    async def get_range(self, url: str, headers: Mapping[str, str]) -> ContentAnswer:
        """Ask for bytes at a URL, with authorization if it is this endpoint's.

        Raises:
            Transient, Unauthorized, SourceError, Unreachable: as RangeClient.get and Authenticator say.
        """

        async def send(extra: Mapping[str, str]) -> ContentAnswer:
            return await self._ranges.get(url, {**headers, **extra})

        return await self.authorised(url, send, PULL)

    async def authorised(
        self, url: str, send: Callable[[Mapping[str, str]], Awaitable[A]], actions: str
    ) -> A:
        """Send with what authorization there is, and once more with a new one after a 401.

        Who has several credentials tries each. Another origin than the endpoint's gets no authorization.
        """
        if origin_of(url) != self._origin:
            return await send({})
        scope = f"repository:{self._repository}:{actions}" if self._repository else ""
        authenticator = self._authenticator
        sent = [await authenticator.authorization(scope)]
        while True:
            answer = await send(self._with(sent[-1]))
            if answer.status != 401:
                return answer
            try:
                if len(sent) > 1 and not await authenticator.has_others(sent):
                    return answer
            except BaseException:
                answer.close()
                raise
            challenges = answer.headers("www-authenticate")
            answer.close()
            sent.append(await authenticator.renew(scope, challenges, sent))

    def _with(self, authorization: str) -> dict[str, str]:
        """The headers for this host alone."""
        return {**self._headers, "Authorization": authorization} if authorization else self._headers
