"""Where a blob lies now: the redirect of a registry to its storage, followed once for all readers."""

import time
from collections.abc import Mapping
from typing import Final, Protocol

import trio
from msgspec import Struct

from lazyfs.errors import Unreachable
from lazyfs.source.counters import Counters
from lazyfs.source.http.answers import failure
from lazyfs.source.http.pool import ContentAnswer
from lazyfs.source.http.retry import RetryPolicy
from lazyfs.source.http.turns import Turns
from lazyfs.source.http.urls import MAX_REDIRECTS, REDIRECTS, lifetime_s, redirect_target, shown
from lazyfs.source.registry.places import Rest

CONTENT: Final = frozenset({200, 206})
# What storage says of a URL whose signature has run out, or that it no longer knows.
GONE: Final = frozenset({400, 401, 403, 404, 410})


class Asks(Protocol):
    """Sends a GET to a URL, with whatever authorization belongs there."""

    async def __call__(self, url: str, headers: Mapping[str, str]) -> ContentAnswer:
        """The answer's head, redirects included."""


class Place(Struct, frozen=True):
    """A URL that gave content.

    Attributes:
        url: it may hold a signature, so it is not shown.
        redirected: whether it is another than the one we started from.
        good_until: trio time after which it is looked up again.
    """

    url: str
    redirected: bool
    good_until: float

    def __repr__(self) -> str:
        return f"<Place {'redirected' if self.redirected else 'direct'}, good until {self.good_until}>"


class Locator:
    """One blob at one host, or at one of its descriptor's own URLs.

    Args:
        url: where to start.
        what: the blob, for messages.
        ask: sends the requests.
        policy: how patient to be.
        counters: where redirects are counted.
        host_rest: of the host, where it has more than this blob.

    Attributes:
        shown_url: where it starts, fit to be shown.
        policy: how patient to be.
        rest: whether to leave this place alone, where others have the same.
    """

    def __init__(
        self,
        url: str,
        what: str,
        ask: Asks,
        policy: RetryPolicy,
        counters: Counters,
        host_rest: Rest | None = None,
    ) -> None:
        self.shown_url = shown(url)
        self.policy = policy
        self.rest = Rest(what, host_rest or Rest(self.shown_url))
        self._url = url
        self._what = what
        self._ask = ask
        self._counters = counters
        self._turns = Turns()
        self._place: Place | None = None

    def __repr__(self) -> str:
        return f"<Locator {self.shown_url} {self._place}>"

    async def open(self, headers: Mapping[str, str]) -> ContentAnswer:
        """A 200 or 206 answer to a GET with `headers`; the caller closes it.

        Readers that find no usable place wait for the one of them who looks; a place that turns out to be
        gone is looked up again, once per call.

        Raises:
            Transient: try again.
            Unauthorized, NotFound, RangeRefused, SourceError, Unreachable: do not.
        """
        renewed = False
        while True:
            place = self._current()
            if place is None:
                async with self._turns.take():
                    place = self._current()
                    if place is None:
                        return await self._walk(headers)
            answer = await self._ask(place.url, headers)
            if answer.status in CONTENT:
                return answer
            answer.close()
            moved = answer.status in REDIRECTS or (place.redirected and answer.status in GONE)
            if renewed or not moved:
                raise failure(answer, self._what)
            self._forget(place)
            renewed = True

    def _current(self) -> Place | None:
        place = self._place
        return place if place and trio.current_time() < place.good_until else None

    def _forget(self, place: Place) -> None:
        """Look again, unless another reader has done so already."""
        if self._place is place:
            self._place = None

    async def _walk(self, headers: Mapping[str, str]) -> ContentAnswer:
        """Follow redirects from the start to content, and remember where it was."""
        url = self._url
        for _ in range(MAX_REDIRECTS + 1):
            answer = await self._ask(url, headers)
            if answer.status in CONTENT:
                self._place = self._place_of(url)
                return answer
            answer.close()
            if answer.status not in REDIRECTS:
                raise failure(answer, self._what)
            self._counters.add("redirects")
            url = redirect_target(url, answer.header("location"))
        raise Unreachable(f"{self._what}: more than {MAX_REDIRECTS} redirects", url=self.shown_url)

    def _place_of(self, url: str) -> Place:
        if url == self._url:
            return Place(url, redirected=False, good_until=float("inf"))
        return Place(url, redirected=True, good_until=trio.current_time() + lifetime_s(url, time.time()))
