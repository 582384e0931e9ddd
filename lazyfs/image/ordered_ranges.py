"""A blob from front to back by several requests at once, small ones first: its beginning comes soon."""

from collections.abc import Awaitable, Callable, Iterator
from typing import Final

import trio

from lazyfs.image.tasks import open_tasks

AT_ONCE: Final = 3

_FIRST: Final = 128 << 10
_MOST: Final = 512 << 10

Fetch = Callable[[int, int], Awaitable[bytes]]
"""Brings bytes [start, end)."""

Take = Callable[[bytes], Awaitable[None]]
"""Is given the next bytes."""


def cuts(start: int, end: int) -> Iterator[tuple[int, int]]:
    """[start, end) in pieces that grow."""
    size = _FIRST
    while start < end:
        stop = min(start + size, end)
        yield start, stop
        start, size = stop, min(2 * size, _MOST)


async def pour(fetch: Fetch, start: int, end: int, take: Take) -> None:
    """Gives bytes [start, end) of something to `take`, in order.

    Args:
        fetch: brings a range.
        start: first byte.
        end: their end.
        take: is given them; while it works, at most AT_ONCE requests come or wait.

    Raises:
        LazyfsError, IndexerError: from `fetch` or `take`.
    """
    slots = trio.Semaphore(AT_ONCE)

    async def bring(first: int, last: int, before: trio.Event, done: trio.Event) -> None:
        data = await fetch(first, last)
        await before.wait()
        await take(data)
        slots.release()
        done.set()

    async with open_tasks() as nursery:
        before = trio.Event()
        before.set()
        for first, last in cuts(start, end):
            await slots.acquire()
            done = trio.Event()
            nursery.start_soon(bring, first, last, before, done)
            before = done
