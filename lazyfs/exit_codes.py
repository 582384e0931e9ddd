"""What a program that ran lazyfs is told: the one table from errors to exit codes (sysexits.h)."""

from typing import Final

from indexer.errors import IndexerError
from lazyfs.errors import (
    AlreadyMounted,
    BadReference,
    CacheBusy,
    CacheError,
    CommandNotFound,
    CommandRefused,
    ConfigError,
    ContainerError,
    LazyfsError,
    MountError,
    NotFound,
    NotMounted,
    NotTrusted,
    NotWritable,
    RangeRefused,
    SourceError,
    Unauthorized,
    Unreachable,
    WrongKind,
)

USAGE: Final = 64
BAD_DATA: Final = 65
UNFIT: Final = 69
BUG: Final = 70
INTERRUPTED: Final = 130

# The first row whose kind fits counts.
_TABLE: Final[tuple[tuple[type[Exception], int], ...]] = (
    (BadReference, USAGE),
    (IndexerError, BAD_DATA),
    (NotFound, 66),
    (NotMounted, 66),
    (WrongKind, 66),
    (Unauthorized, 77),
    (NotTrusted, 77),
    (Unreachable, 75),
    (RangeRefused, 75),
    (NotWritable, 74),
    (SourceError, 75),
    (AlreadyMounted, 73),
    (MountError, 71),  # the system refused
    (CacheBusy, 75),
    (CacheError, 74),  # the disk did
    (ConfigError, 78),
    # As docker and podman say it, so that a container's own codes can be told from these.
    (CommandNotFound, 127),
    (CommandRefused, 126),
    (ContainerError, 125),
    (LazyfsError, BUG),
    (TimeoutError, 75),
    (OSError, 74),
)


def message_of(error: BaseException) -> str:
    """What to say of an error: where it happened, as far as its notes tell, and what."""
    return ": ".join([*getattr(error, "__notes__", []), str(error) or type(error).__name__])


def exit_code(error: BaseException) -> int:
    """The exit code for an error; 70, a bug, for what has no row."""
    return next((code for kind, code in _TABLE if isinstance(error, kind)), BUG)
