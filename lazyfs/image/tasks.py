"""Running several things at once without letting exception groups out."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager

import trio


async def run_all(works: Iterable[Callable[[], Awaitable[None]]]) -> None:
    """Run all works at once; the first error ends the others and is raised alone."""
    async with open_tasks() as nursery:
        for work in works:
            nursery.start_soon(work)


async def run_few(works: Iterable[Callable[[], Awaitable[None]]], at_once: int) -> None:
    """Run works, begun in their order and `at_once` at a time; errors as for `run_all`."""
    left = iter(works)

    async def worker() -> None:
        for work in left:
            await work()

    await run_all([worker] * at_once)


@asynccontextmanager
async def open_tasks() -> AsyncIterator[trio.Nursery]:
    """A nursery whose first error is raised alone, not as a group."""
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
    except BaseExceptionGroup as group:
        error = first_error(group)
        if error is None:
            raise
        raise error from error.__cause__


@asynccontextmanager
async def background_tasks() -> AsyncIterator[trio.Nursery]:
    """A nursery whose tasks nobody waits for: they are cancelled at the end. Errors as for `open_tasks`."""
    async with open_tasks() as nursery:
        try:
            yield nursery
        finally:
            nursery.cancel_scope.cancel()


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException | None:
    """The first error in a group that is no cancellation; None if there is none."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            found = first_error(error)
            if found is not None:
                return found
        elif not isinstance(error, trio.Cancelled):
            return error
    return None
