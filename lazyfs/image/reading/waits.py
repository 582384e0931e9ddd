"""Reads that had to wait: how long, and what for."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import trio

from lazyfs.image.reading.landing import Landing
from lazyfs.image.reading.traffic import Cause


class Wait:
    """A read that waits.

    Args:
        start: its first byte in its layer's address space.
        size: its bytes.

    Attributes:
        start: see above.
        size: see above.
        asked_s: when it was asked, in seconds of trio's clock.
        came: whether its bytes have come; else it failed, or nobody waits for it any more.
    """

    def __init__(self, start: int, size: int) -> None:
        self.start = start
        self.size = size
        self.asked_s = trio.current_time()
        self.came = False
        self._pack_s: float | None = None
        self._landings: Collection[Landing] = ()

    def __repr__(self) -> str:
        return f"<Wait for {self.size} bytes at {self.start}, {self.seconds:.3f} s>"

    @property
    def seconds(self) -> float:
        """How long it has waited so far."""
        return trio.current_time() - self.asked_s

    def ends_for_pack(self) -> None:
        """What it has waited for until now was a boot pack."""
        self._pack_s = self.seconds

    def begins_for(self, landings: Collection[Landing]) -> None:
        """From now on it waits for these."""
        self._landings = landings

    @property
    def cause(self) -> Cause:
        """What it has waited for most."""
        tickets = [landing.ticket for landing in self._landings]
        seconds = self.seconds
        pack_s = seconds if self._pack_s is None else self._pack_s
        fetch_s = seconds - pack_s
        queue_s = min(max((ticket.queue_s for ticket in tickets), default=0.0), fetch_s)
        unpack_s = min(max((ticket.unpack_s for ticket in tickets), default=0.0), fetch_s - queue_s)
        causes = {
            Cause.NETWORK: fetch_s - queue_s - unpack_s,
            Cause.PACK: pack_s,
            Cause.QUEUE: queue_s,
            Cause.UNPACK: unpack_s,
        }
        return max(causes, key=causes.__getitem__)


Waited = Callable[[Wait], None]
"""Told of a read of a layer that had to wait, when that is over."""


@contextmanager
def waiting(start: int, size: int, waited: Waited | None) -> Iterator[Wait]:
    """A read that waits until the block ends; somebody is told of it then, if anybody wants to know."""
    wait = Wait(start, size)
    try:
        yield wait
    finally:
        if waited is not None:
            waited(wait)
