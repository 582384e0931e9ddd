"""What a reader is told when something below goes wrong: the one table from errors to errno."""

import errno
import logging
import os
from typing import Final

import trio

from indexer.errors import IndexerError
from lazyfs.errors import LazyfsError, NotFound, Unauthorized

# The first row whose kind fits counts. What is in no row is a bug.
ERRNO_TABLE: Final[tuple[tuple[type[Exception], int], ...]] = (
    (trio.TooSlowError, errno.ETIMEDOUT),  # the face's own deadline
    (NotFound, errno.ENOENT),
    (Unauthorized, errno.EACCES),
    (LazyfsError, errno.EIO),  # unreachable, a refused range, an unusable cache
    (IndexerError, errno.EIO),  # bytes that are not what their digest or format promises
    (OSError, errno.EIO),  # our own disk; its ENOSPC or EROFS would mislead the reader
)

CONNECTION_ENDED: Final = frozenset({errno.ENODEV, errno.ECONNABORTED, errno.EPERM})
"""Of reading /dev/fuse and writing to it: no mount, it has ended, it was aborted."""

QUIET_S: Final = 30.0


class Refused(Exception):
    """An answer that is an errno although nothing went wrong.

    Attributes:
        errno: which.
    """

    def __init__(self, number: int) -> None:
        super().__init__(os.strerror(number))
        self.errno = number


def errno_of(error: Exception) -> int | None:
    """What a reader gets for `error`; None if only a bug can have raised it."""
    return next((number for kind, number in ERRNO_TABLE if isinstance(error, kind)), None)


class FailureLog:
    """Turns failures into errno, and into one line of log per burst.

    A dead registry fails hundreds of reads a second, all for one reason. Of failures with the same errno
    only the first is logged, until there has been none for QUIET_S seconds. Bugs are always logged, with
    their traceback.
    """

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._last: dict[int, float] = {}  # by errno: when it last failed, trio's clock
        self._unsaid: dict[int, int] = {}  # by errno: failures since the one that was logged

    def __repr__(self) -> str:
        return f"<FailureLog unsaid={self._unsaid}>"

    def errno_for(self, error: Exception, doing: str) -> int:
        """The errno for `error`, which came while `doing` ("read inode 7"). Never raises."""
        number = errno_of(error)
        if number is None:
            self._log.error("a bug, while answering %s", doing, exc_info=error)
            return errno.EIO
        now = trio.current_time()
        if now - self._last.get(number, -QUIET_S) < QUIET_S:
            self._unsaid[number] = self._unsaid.get(number, 0) + 1
        else:
            more = self._unsaid.pop(number, 0)
            before = f" ({more} more like the last one)" if more else ""
            said = str(error) or type(error).__name__
            self._log.warning("cannot answer %s: %s [%s]%s", doing, said, errno.errorcode[number], before)
        self._last[number] = now
        return number
