"""Single flight: however many tasks want the same thing at once, the work is done once."""

from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import trio

from lazyfs.errors import CacheError

if TYPE_CHECKING:
    from types import TracebackType

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FlightStatistics:
    """A snapshot.

    Attributes:
        flying: works under way.
        waiting: tasks that wait for them.
        flown: works started so far.
        shared: callers so far that found their work under way.
    """

    flying: int
    waiting: int
    flown: int
    shared: int


class _Flight(Generic[T]):
    """One work under way, and how it ended.

    Attributes:
        landed: it has ended.
        waiting: how many wait for it.
        result: what it gave, once.
        error: what it raised, and the traceback it had then.
        abandoned: it ended because nobody waited any more.
    """

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.landed = trio.Event()
        self.waiting = 0
        self.result: tuple[T] | None = None
        self.error: tuple[Exception, TracebackType | None] | None = None
        self.abandoned = False


class Flights(Generic[T]):
    """Works by key, each in a task of its own, shared by all who ask for it meanwhile.

    A caller who is cancelled leaves the others waiting. When the last one leaves, the work is cancelled; who
    asks for it before that has ended waits for its end and begins anew, so that never two fly for one key.
    Nothing is remembered: who comes after the end starts another.

    Args:
        nursery: where the works live.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._flights: dict[Hashable, _Flight[T]] = {}
        self._flown = 0
        self._shared = 0

    def __repr__(self) -> str:
        return f"<Flights, {len(self._flights)} flying>"

    def statistics(self) -> FlightStatistics:
        """What is under way."""
        waiting = sum(flight.waiting for flight in self._flights.values())
        return FlightStatistics(len(self._flights), waiting, self._flown, self._shared)

    async def run(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> T:
        """The result of the work for `key`, which is `work` unless one is under way.

        A deadline around the call ends this wait, and the work only if nobody else waits.

        Raises:
            Exception: what the work raised, the same object for everyone who shared it.
            CacheError: the nursery was cancelled.
        """
        while True:
            flight = self._flights.get(key)
            if flight is None:
                flight = self._start(key, work)
            else:
                self._shared += 1
            await self._wait(flight)
            if flight.result is not None:
                return flight.result[0]
            if not flight.abandoned:
                break
        if flight.error is None:
            raise CacheError("cut off: shutting down")
        # Each waiter's frames follow those of the work, not those of other waiters.
        error, traceback = flight.error
        raise error.with_traceback(traceback)

    def _start(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> _Flight[T]:
        flight = _Flight[T]()
        try:
            self._nursery.start_soon(self._fly, key, flight, work)
        except RuntimeError as error:  # "Nursery is closed to new arrivals"
            raise CacheError("too late: shutting down") from error
        self._flights[key] = flight
        self._flown += 1
        return flight

    async def _wait(self, flight: _Flight[T]) -> None:
        flight.waiting += 1
        try:
            await flight.landed.wait()
        finally:
            flight.waiting -= 1
            if not flight.waiting:
                flight.scope.cancel()

    async def _fly(self, key: Hashable, flight: _Flight[T], work: Callable[[], Awaitable[T]]) -> None:
        try:
            with flight.scope:
                flight.result = (await work(),)
        except Exception as error:  # noqa: BLE001  # it is raised again where it is waited for
            flight.error = error, error.__traceback__
        finally:
            flight.abandoned = flight.scope.cancel_called
            del self._flights[key]
            flight.landed.set()
