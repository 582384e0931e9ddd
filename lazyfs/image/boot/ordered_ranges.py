"""A blob from front to back by several requests at once.

The first one's bytes are taken while they come: so its beginning comes soon, and the line is not idle while
the connections of the others are opened.
"""

from collections.abc import Awaitable, Callable, Iterator
from typing import Final

import trio

from lazyfs.image.tasks import open_tasks

AT_ONCE: Final = 3

_FIRST: Final = 1 << 20
_MOST: Final = 512 << 10

Fetch = Callable[[int, int], Awaitable[bytes]]
"""Brings bytes [start, end)."""

Stream = Callable[[int, int, "Take"], Awaitable[None]]
"""Gives bytes [start, end), as they come."""

Take = Callable[[bytes], Awaitable[None]]
"""Is given the next bytes."""


def cuts(start: int, end: int) -> Iterator[tuple[int, int]]:
    """[start, end) in pieces, the first one larger."""
    size = _FIRST
    while start < end:
        stop = min(start + size, end)
        yield start, stop
        start, size = stop, _MOST


async def pour(stream: Stream, fetch: Fetch, start: int, end: int, take: Take) -> None:
    """Gives bytes [start, end) of something to `take`, in order.

    Args:
        stream: brings the first range.
        fetch: brings the others.
        start: first byte.
        end: their end.
        take: is given them; while it works, at most AT_ONCE requests come or wait.

    Raises:
        LazyfsError, IndexerError: from `stream`, `fetch` or `take`.
    """
    slots = trio.Semaphore(AT_ONCE)

    begun = trio.Event()

    async def begin(data: bytes) -> None:
        begun.set()
        await take(data)

    async def bring(first: int, last: int, before: trio.Event | None, done: trio.Event) -> None:
        if before is None:
            await stream(first, last, begin)
        else:
            data = await fetch(first, last)
            await before.wait()
            await take(data)
        slots.release()
        done.set()

    async with open_tasks() as nursery:
        before: trio.Event | None = None
        for first, last in cuts(start, end):
            await slots.acquire()
            done = trio.Event()
            nursery.start_soon(bring, first, last, before, done)
            before = done
            await (
                begun.wait()
            )  # where the blob lies is found by one request alone, and this has to be the first
