"""Spans under way: who needs one that somebody fetches already waits for its landing."""

from collections.abc import Iterable, Iterator

import trio

from indexer.errors import IndexerError
from lazyfs.errors import LazyfsError
from lazyfs.image.reading.traffic import Ticket

Failure = IndexerError | LazyfsError


class Landing:
    """A span under way.

    Attributes:
        ticket: of the request that brings it.
    """

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket
        self._landed = trio.Event()
        self._error: Failure | None = None
        self._data: bytes | memoryview | None = None

    def land(self, data: bytes | memoryview | None, error: Failure | None) -> None:
        """The span has come, or will not."""
        self._data = data
        self._error = error
        self._landed.set()

    async def wait(self) -> bytes | memoryview | None:
        """The span's bytes; None where another process has put them into the cache.

        Raises:
            IndexerError: what came is damaged.
            LazyfsError: it did not come.
        """
        await self._landed.wait()
        if self._error is not None:
            raise self._error
        return self._data


class Landings:
    """The spans of a layer that are under way, by number."""

    def __init__(self) -> None:
        self._under_way: dict[int, Landing] = {}

    def __len__(self) -> int:
        return len(self._under_way)

    def __iter__(self) -> Iterator[int]:
        return iter(self._under_way)

    def __contains__(self, number: int) -> bool:
        return number in self._under_way

    def __getitem__(self, number: int) -> Landing:
        return self._under_way[number]

    def claim(self, numbers: Iterable[int], ticket: Ticket) -> None:
        """These are under way from now on; whoever claims them lands them, whatever happens."""
        self._under_way.update((number, Landing(ticket)) for number in numbers)

    def land(self, number: int, data: bytes | memoryview | None, error: Failure | None = None) -> None:
        """A span has come, or will not; once it has, saying so again means nothing."""
        landing = self._under_way.pop(number, None)
        if landing is not None:
            landing.land(data, error)
