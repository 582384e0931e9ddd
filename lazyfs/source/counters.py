"""Counts that worker threads and tasks add to at once."""

import threading

from lazyfs.source.base import SourceStatistics
from lazyfs.source.line import Line


class Counters:
    """The running counts of one source.

    Attributes:
        line: how fast it answers.
    """

    def __init__(self) -> None:
        self.line = Line()
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}

    def add(self, name: str, count: int = 1) -> None:
        """Add to the count that SourceStatistics has under `name`."""
        with self._lock:
            self._counts[name] = self._counts.get(name, 0) + count

    def snapshot(self) -> SourceStatistics:
        """The counts now."""
        with self._lock:
            return SourceStatistics(**self._counts)
