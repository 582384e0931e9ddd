"""Places that may have the same content, tried in order, and how long one that failed is left alone.

A mirror that died must cost its readers one wait, not one each; and one that came back must be found again.
"""

import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol, TypeVar

import trio

from indexer.errors import IndexerError
from lazyfs.errors import SourceError, Unreachable

FIRST_REST_S: Final = 15.0
MOST_REST_S: Final = 600.0

_log = logging.getLogger(__name__)


class Rest:
    """Whether a place is left alone for now. The time doubles with each failure in a row.

    Args:
        name: the place, for the log.
        host: of the host, where this is of something on it: what has no answer makes the whole host rest,
            any other error only this.
    """

    def __init__(self, name: str, host: "Rest | None" = None) -> None:
        self._name = name
        self._host = host
        self._failures = 0
        self._until = -math.inf
        self._on_trial = False

    def __repr__(self) -> str:
        return f"<Rest of {self._name}, {self._failures} failures>"

    def admits(self) -> bool:
        """Whether to try it now. After a rest one task may, while others still keep away."""
        concerned = (self, self._host) if self._host else (self,)
        if any(rest.lasts() for rest in concerned):
            return False
        for rest in concerned:
            rest.give_a_trial()
        return True

    def lasts(self) -> bool:
        """Whether this one's time is not over yet."""
        return trio.current_time() < self._until

    def give_a_trial(self) -> None:
        """If it failed before, let nobody else try until this try has ended."""
        if self._failures:
            self._on_trial = True
            self._until = trio.current_time() + self._length_s()

    def worked(self) -> None:
        """It gave what was asked."""
        self._failures = 0
        self._until = -math.inf
        self._on_trial = False
        if self._host:
            self._host.worked()

    def failed(self, error: BaseException) -> None:
        """It did not, for this reason."""
        lost = isinstance(error, Unreachable | trio.Cancelled)
        if self._host and lost:
            self._host.failed(error)
        elif self._host or lost:
            self._begin()

    def _begin(self) -> None:
        if self.lasts() and not self._on_trial:
            return  # another that was under way when it failed
        self._failures += 1
        self._on_trial = False
        self._until = trio.current_time() + self._length_s()
        _log.info("%s failed; asking elsewhere for %g s", self._name, self._length_s())

    def _length_s(self) -> float:
        return min(FIRST_REST_S * 2.0 ** min(self._failures - 1, 20), MOST_REST_S)


class Place(Protocol):
    """Somewhere to ask."""

    @property
    def rest(self) -> Rest:
        """Whether to leave it alone."""


P = TypeVar("P", bound=Place)
T = TypeVar("T")


async def ask_in_turn(places: Sequence[P], home: P, ask: Callable[[P], Awaitable[T]]) -> T:
    """What the first of `places` gives that can; those that rest come last.

    A place that is asked when the caller's time runs out counts as failed too: the next reader asks another.

    Args:
        places: in order of preference.
        home: the one of them whose error counts when all fail.
        ask: asks one place.

    Raises:
        SourceError, IndexerError: what `home` raised.
    """
    if len(places) == 1:
        return await ask(home)
    errors: dict[int, SourceError | IndexerError] = {}
    put_off: list[P] = []
    for queue, last_chance in ((places, False), (put_off, True)):
        for place in queue:
            if not last_chance and not place.rest.admits():
                put_off.append(place)
                continue
            try:
                result = await ask(place)
            except (SourceError, IndexerError) as error:
                place.rest.failed(error)
                errors[id(place)] = error
            except trio.Cancelled as error:
                place.rest.failed(error)
                raise
            else:
                place.rest.worked()
                return result
    raise errors[id(home)]
