"""What the kernel does after a failed read, and how not to let a reader wait for it.

A read through the page cache first comes as read-ahead, for which a reader waits as long as nobody kills it.
If that fails, the kernel asks at once again, for the one page that is needed, and of a FUSE file it now waits
for nothing but our answer (`filemap_read_folio`, `request_wait_answer`): a stalled layer would cost two
deadlines, the second one unkillable. So the second question gets the first one's answer, without a try.
"""

from collections import deque
from typing import Final, NamedTuple

import trio

AGAIN_S: Final = 1.0
"""How long a failed read is not tried again; the kernel's second question comes within microseconds."""

_MOST: Final = 64


class _Failure(NamedTuple):
    layer: int
    start: int
    end: int
    errno: int
    time_s: float


class FailedReads:
    """The reads that failed last: at most so many, and not for long."""

    def __init__(self) -> None:
        self._failures: deque[_Failure] = deque(maxlen=_MOST)

    def __repr__(self) -> str:
        return f"<FailedReads {len(self._failures)}>"

    def add(self, layer: int, start: int, size: int, errno: int) -> None:
        """A read of [start, start + size) of a layer failed just now."""
        self._failures.append(_Failure(layer, start, start + size, errno, trio.current_time()))

    def errno(self, layer: int, start: int) -> int | None:
        """The answer to a read at `start` that follows its failure at once; None if it is to be tried."""
        while self._failures and trio.current_time() - self._failures[0].time_s >= AGAIN_S:
            self._failures.popleft()
        for failure in self._failures:
            if failure.layer == layer and failure.start <= start < failure.end:
                return failure.errno
        return None
