"""The log of a process: on standard error, a line for each message, without secrets."""

import logging
from typing import Final

from lazyfs.printable import one_line

LAYOUT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
"""How daemons log."""


class _LineFormatter(logging.Formatter):
    """A formatter whose messages are one line each; tracebacks, which follow, stay as they are."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        """The line for a record."""
        record.message = one_line(record.message)
        return super().formatMessage(record)


def start_log(level: str, layout: str = LAYOUT, also: logging.Handler | None = None) -> None:
    """Log to standard error, in place of what logged before; never the URLs of requests, which are signed.

    Args:
        level: the least that is logged: "info".
        layout: of a line, as for `logging.Formatter`.
        also: who else gets what is logged.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_LineFormatter(layout))
    handlers = [handler] if also is None else [handler, also]
    logging.basicConfig(level=level.upper(), handlers=handlers, force=True)
    for library in ("httpx", "httpcore"):
        logging.getLogger(library).setLevel(logging.WARNING)
