"""An answer that is asked for once, however many want it."""

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import trio

from indexer.errors import IndexerError
from lazyfs.errors import LazyfsError

T = TypeVar("T")


class Once(Generic[T]):
    """Asks when the first wants to know. The answer is everybody's, an error that of all who waited for it.

    Args:
        ask: asks. Where it fails or is cancelled, the next who wants to know asks again.
    """

    def __init__(self, ask: Callable[[], Awaitable[T]]) -> None:
        self._ask = ask
        self._lock = trio.Lock()
        self._answers: list[T] = []
        self._failures = 0
        self._error: IndexerError | LazyfsError | None = None

    async def get(self) -> T:
        """The answer.

        Raises:
            IndexerError, LazyfsError: from `ask`.
        """
        failures = self._failures
        async with self._lock:
            if self._error is not None and self._failures > failures:
                raise self._error
            if not self._answers:
                try:
                    self._answers.append(await self._ask())
                except (IndexerError, LazyfsError) as error:
                    self._error = error
                    self._failures += 1
                    raise
        return self._answers[0]
