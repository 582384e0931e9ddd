"""What the kernel does after a failed read, and how not to let a reader wait for it.

A read through the page cache first comes as read-ahead, for which a reader waits as long as nobody kills it.
If that fails, the kernel asks at once again, for the one page that is needed, and now nothing ends the wait
but our answer (`filemap_read_folio`, `request_wait_answer`): a stalled layer would cost two deadlines, the
second one unkillable. So that second question gets the first one's answer, without a second try. Moreover
the page stays in the cache, marked as unread, and any later reader of it gets straight into the second
state. So the next open drops what is cached of the file.
"""

from typing import Final, NamedTuple

import trio

AGAIN_S: Final = 1.0
"""How long a failed read is not tried again; the kernel's second question comes within microseconds."""


class _Failure(NamedTuple):
    start: int
    end: int
    errno: int
    time_s: float


class FailedReads:
    """The last failed read of each file, until the file is opened again."""

    def __init__(self) -> None:
        self._failures: dict[int, _Failure] = {}

    def __repr__(self) -> str:
        return f"<FailedReads of {len(self._failures)} files>"

    def add(self, inode: int, offset: int, size: int, errno: int) -> None:
        """A read of [offset, offset + size) failed just now."""
        self._failures[inode] = _Failure(offset, offset + size, errno, trio.current_time())

    def errno(self, inode: int, offset: int) -> int | None:
        """The answer to a read at `offset` that follows its failure at once; None if it is to be tried."""
        failure = self._failures.get(inode)
        if failure is None or not failure.start <= offset < failure.end:
            return None
        return failure.errno if trio.current_time() - failure.time_s < AGAIN_S else None

    def forget(self, inode: int) -> bool:
        """Whether a read of the file had failed; from now on none has."""
        return self._failures.pop(inode, None) is not None
