"""A blob from front to back by several requests at once, small ones first: its beginning comes soon."""

from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Final

import trio

from lazyfs.image.tasks import open_tasks
from lazyfs.source.base import Blob

AT_ONCE: Final = 3

_FIRST: Final = 128 << 10
_MOST: Final = 512 << 10

Take = Callable[[bytes], Awaitable[None]]
"""Is given the next bytes."""


def cuts(start: int, end: int) -> Iterator[tuple[int, int]]:
    """[start, end) in pieces that grow."""
    size = _FIRST
    while start < end:
        stop = min(start + size, end)
        yield start, stop
        start, size = stop, min(2 * size, _MOST)


async def pour(
    blob: Blob,
    start: int,
    end: int,
    take: Take,
    arrived: Callable[[int], None],
) -> None:
    """Gives bytes [start, end) of a blob to `take`, in order.

    Args:
        blob: where they are.
        start: first byte.
        end: their end.
        take: is given them; while it works, at most AT_ONCE requests come or wait.
        arrived: told of bytes that have come, in any order.

    Raises:
        LazyfsError, IndexerError: they do not come; or from `take`.
    """
    slots = trio.Semaphore(AT_ONCE)

    async def fetch(first: int, last: int, before: trio.Event, done: trio.Event) -> None:
        data = await blob.fetch(first, last, bytes)
        arrived(len(data))
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
            nursery.start_soon(partial(fetch, first, last, before, done))
            before = done
