"""An answer that is asked for once, however many want it."""

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import trio

from indexer.errors import IndexerError
from lazyfs.errors import LazyfsError

T = TypeVar("T")


class Once(Generic[T]):
    """Asks when the first wants to know; the answer, or the error, is everybody's.

    Args:
        ask: asks. Where it is cancelled, the next who wants to know asks again.
    """

    def __init__(self, ask: Callable[[], Awaitable[T]]) -> None:
        self._ask = ask
        self._lock = trio.Lock()
        self._answers: list[T] = []
        self._error: IndexerError | LazyfsError | None = None

    async def get(self) -> T:
        """The answer.

        Raises:
            IndexerError, LazyfsError: from `ask`.
        """
        async with self._lock:
            if self._error is not None:
                raise self._error
            if not self._answers:
                try:
                    self._answers.append(await self._ask())
                except (IndexerError, LazyfsError) as error:
                    self._error = error
                    raise
        return self._answers[0]
