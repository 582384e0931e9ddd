"""An answer that is asked for once, however many want it."""

import math
from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar

import trio

from indexer.errors import IndexerError
from lazyfs.errors import LazyfsError, Unreachable

T = TypeVar("T")

_SILENCE_S: Final = 10.0
"""For how long one that cannot be reached is left alone: who wants to know at the same time waits less."""


class Once(Generic[T]):
    """Asks when the first wants to know; the answer, or the error, is everybody's.

    That nobody could be reached holds for ten seconds only.

    Args:
        ask: asks. Where it is cancelled, the next who wants to know asks again.
    """

    def __init__(self, ask: Callable[[], Awaitable[T]]) -> None:
        self._ask = ask
        self._lock = trio.Lock()
        self._answers: list[T] = []
        self._error: IndexerError | LazyfsError | None = None
        self._until = math.inf

    async def get(self) -> T:
        """The answer.

        Raises:
            IndexerError, LazyfsError: from `ask`.
        """
        async with self._lock:
            if self._error is not None and trio.current_time() < self._until:
                raise self._error
            if not self._answers:
                try:
                    self._answers.append(await self._ask())
                except (IndexerError, LazyfsError) as error:
                    self._error = error
                    silent = isinstance(error, Unreachable)
                    self._until = trio.current_time() + _SILENCE_S if silent else math.inf
                    raise
        return self._answers[0]
