"""One task does what many wait for, and when it fails the others need not fail one after the other."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from lazyfs.source.http.retry import Transient


class Turns:
    """A lock whose waiters share a transient failure of the task before them.

    With a plain lock, readers of a registry that hangs would each hold it until their own attempt has timed
    out, and the last would wait for all of them.
    """

    def __init__(self) -> None:
        self._lock = trio.Lock()
        self._ended = 0
        self._failure: Transient | None = None

    @asynccontextmanager
    async def take(self) -> AsyncIterator[None]:
        """Wait for our turn; what to do may be done by then, so look first.

        Raises:
            Transient: while we waited another task tried, and failed with this.
        """
        ended = self._ended
        async with self._lock:
            if self._failure and self._ended != ended:
                failure = self._failure
                raise Transient(
                    failure.reason, status=failure.status, retry_after_s=failure.retry_after_s
                ) from failure
            try:
                yield
            except Transient as failure:
                self._failure = failure
                self._ended += 1
                raise
            self._failure = None
