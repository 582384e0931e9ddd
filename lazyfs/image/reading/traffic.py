"""Who asks for content, and who goes first: readers, then boot packs, then read-ahead, then the background.

All requests for the content of one mount, or of one daemon, take turns here. What is asked for in advance
waits while there is no room; when a reader comes to want the same, its request goes first from then on.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from enum import Enum
from heapq import heappush, heapreplace, nlargest
from typing import Final, NamedTuple

import trio
from msgspec import Struct

from indexer.boot_pack import PackLayer
from lazyfs.image.reading.budget import Budget
from lazyfs.image.reading.histogram import Distribution, Histogram

SLOWEST: Final = 32
"""Reads that are remembered for having waited longest."""

_MOST: Final = 12  # requests at once in advance of readers, and 3/4 of the connections: the rest are theirs
_BUSY: Final = 4  # readers' requests under way beside which nothing new is asked for in advance
_IDLE_S: Final = 0.5


class Purpose(Enum):
    """Whom a request is for."""

    DEMAND = "demand"
    PACK = "pack"
    AHEAD = "read-ahead"
    BACKGROUND = "background"


_URGENCY: Final = {purpose: number for number, purpose in enumerate(Purpose)}


class Cause(Enum):
    """What a reader waited for most."""

    QUEUE = "queueing"  # for a turn, or for another process
    NETWORK = "network"
    UNPACK = "decompress"
    PACK = "pack"  # for a boot pack's stream


class SlowRead(NamedTuple):
    """A read that waited.

    Attributes:
        wait_s: how long.
        at_s: when it was asked, in seconds of trio's clock.
        layer: of which layer.
        start: first byte in its address space.
        size: bytes.
        cause: what it waited for most.
        came: whether its bytes came in the end; else it failed, or was given up.
    """

    wait_s: float
    at_s: float
    layer: PackLayer
    start: int
    size: int
    cause: Cause
    came: bool


class TrafficCount(Struct, frozen=True):
    """What was asked for one purpose.

    Attributes:
        requests: how many were sent.
        bytes: how many bytes they asked for.
    """

    requests: int = 0
    bytes: int = 0


class Tally:
    """What was asked for, by purpose."""

    def __init__(self) -> None:
        self._counts = dict.fromkeys(Purpose, TrafficCount())

    def count(self, purpose: Purpose, size: int, *, requests: int = 1) -> None:
        """A request for `size` bytes is sent; none of its own, if `requests` is 0."""
        before = self._counts[purpose]
        self._counts[purpose] = TrafficCount(before.requests + requests, before.bytes + size)

    def counts(self) -> dict[Purpose, TrafficCount]:
        """What was asked so far."""
        return dict(self._counts)


class WaitTally:
    """Reads that had to wait: how long, by what for, and which waited longest."""

    def __init__(self) -> None:
        self._slowest: list[tuple[float, int, SlowRead]] = []
        self._reads = 0
        self._waits = {cause: Histogram() for cause in Cause}

    def waited(self, read: SlowRead) -> None:
        """A read had to wait."""
        self._reads += 1
        self._waits[read.cause].observe(read.wait_s)
        item = (read.wait_s, self._reads, read)
        if len(self._slowest) < SLOWEST:
            heappush(self._slowest, item)
        elif item > self._slowest[0]:
            heapreplace(self._slowest, item)

    def waits(self) -> Mapping[Cause, Distribution]:
        """How long reads waited, by what they waited for most."""
        return {cause: histogram.distribution() for cause, histogram in self._waits.items()}

    def slowest(self) -> list[SlowRead]:
        """The reads that waited longest, the longest first."""
        return [read for _, _, read in nlargest(SLOWEST, self._slowest)]


class Ticket:
    """A request's place among others.

    Attributes:
        purpose: whom it is for; changed by `Traffic.promote` only.
        ahead: bytes of it for which nobody waited when it was made, but for others of it.
        queue_s: for how many seconds it waited for its turn, and for other processes.
        unpack_s: how many seconds it took to unpack what came.
    """

    __slots__ = ("ahead", "purpose", "queue_s", "unpack_s")

    def __init__(self, purpose: Purpose, ahead: int = 0) -> None:
        self.purpose = purpose
        self.ahead = ahead
        self.queue_s = 0.0
        self.unpack_s = 0.0


class Traffic:
    """The requests of one mount, or one daemon.

    Args:
        background_rate: bytes a second that the background may ask for; 0 is any number.
        patient: whether the background waits until nothing else has been asked for a while.
        rate: bytes a second for all requests together; 0 is any number.
        connections: how many there are for all of them; 0 is any number.
    """

    def __init__(
        self, background_rate: int = 0, *, patient: bool = True, rate: int = 0, connections: int = 0
    ) -> None:
        self._rate = background_rate
        self._budget = Budget(rate)
        self._connections = connections
        self._most_ahead = min(_MOST, max(connections * 3 // 4, 1)) if connections else _MOST
        self._patient = patient
        self._running = dict.fromkeys(Purpose, 0)
        self._tally = Tally()
        self._wait_tally = WaitTally()
        self._waiting: list[Ticket] = []
        self._changed = trio.lowlevel.ParkingLot()
        self._busy_until = -_IDLE_S
        self._paid_until = 0.0

    def __repr__(self) -> str:
        running = ", ".join(f"{count} {purpose.value}" for purpose, count in self._running.items() if count)
        return f"<Traffic {running or 'idle'}>"

    # Turns

    @asynccontextmanager
    async def turn(self, ticket: Ticket) -> AsyncIterator[None]:
        """Wait for a turn, and hold it."""
        self._waiting.append(ticket)
        waited = False
        try:
            while not self._may_run(ticket.purpose):
                waited = True
                if ticket.purpose is Purpose.BACKGROUND:
                    with trio.move_on_after(_IDLE_S):  # that nothing runs for a while, nobody tells
                        await self._changed.park()
                else:
                    await self._changed.park()
        finally:
            self._waiting.remove(ticket)
            if waited and ticket.purpose is Purpose.DEMAND:
                self._changed.unpark_all()  # others waited for it
        purpose = ticket.purpose
        self._running[purpose] += 1
        try:
            yield
        finally:
            self._running[purpose] -= 1
            if purpose is not Purpose.BACKGROUND:
                self._busy_until = trio.current_time()
            self._changed.unpark_all()

    async def pay(self, ticket: Ticket, size: int) -> None:
        """Wait until so many bytes may be asked for, as all together may ask for so many a second."""
        await self._budget.pay(size, lambda: _URGENCY[ticket.purpose])

    def give_back(self, size: int) -> None:
        """Bytes that were paid for were not needed."""
        self._budget.give_back(size)

    @property
    def rate(self) -> int:
        """Bytes a second for all requests together; 0 is any number."""
        return self._budget.rate

    def promote(self, ticket: Ticket) -> None:
        """A reader waits for this request by now."""
        if ticket.purpose is not Purpose.DEMAND:
            ticket.purpose = Purpose.DEMAND
            self._changed.unpark_all()
            self._budget.look_again()

    def _may_run(self, purpose: Purpose) -> bool:
        running = self._running
        if purpose is not Purpose.DEMAND and any(other.purpose is Purpose.DEMAND for other in self._waiting):
            return False
        ahead = sum(running.values()) - running[Purpose.DEMAND]
        match purpose:
            case Purpose.DEMAND:
                return not self._connections or ahead + running[purpose] < self._connections
            case Purpose.PACK | Purpose.AHEAD:
                return running[Purpose.DEMAND] < _BUSY and ahead < self._most_ahead
            case Purpose.BACKGROUND:
                free = self._is_idle or not self._patient
                return free and running[purpose] < 2 and trio.current_time() >= self._paid_until
        raise AssertionError(purpose)

    @property
    def _is_idle(self) -> bool:
        others = sum(self._running.values()) - self._running[Purpose.BACKGROUND]
        return not others and trio.current_time() - self._busy_until >= _IDLE_S

    # Counts

    def count(self, purpose: Purpose, size: int, *, requests: int = 1) -> None:
        """As Tally.count; what the background may ask for next follows from it."""
        self._tally.count(purpose, size, requests=requests)
        if purpose is Purpose.BACKGROUND and self._rate:
            self._paid_until = max(self._paid_until, trio.current_time()) + size / self._rate

    def waited(self, read: SlowRead) -> None:
        """As WaitTally.waited."""
        self._wait_tally.waited(read)

    def counts(self) -> Mapping[Purpose, TrafficCount]:
        """As Tally.counts."""
        return self._tally.counts()

    def waits(self) -> Mapping[Cause, Distribution]:
        """As WaitTally.waits."""
        return self._wait_tally.waits()

    def slowest(self) -> list[SlowRead]:
        """As WaitTally.slowest."""
        return self._wait_tally.slowest()
