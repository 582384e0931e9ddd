"""How many of many durations were at most how long."""

import threading
from bisect import bisect_left
from itertools import accumulate
from typing import Final, NamedTuple

BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Seconds: from an answer by this machine to a reader's deadline."""


class Distribution(NamedTuple):
    """What was observed so far.

    Attributes:
        counts: for each bound, how many observations were at most that; the last counts all.
        total: the sum of the observations.
    """

    counts: tuple[int, ...]
    total: float


class Histogram:
    """Counts observations by BOUNDS_S. Safe in any thread."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_S) + 1)
        self._total = 0.0
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Histogram of {sum(self._counts)}>"

    def observe(self, value: float) -> None:
        """One more."""
        at = bisect_left(BOUNDS_S, value)
        with self._lock:
            self._counts[at] += 1
            self._total += value

    def distribution(self) -> Distribution:
        """What was observed so far."""
        with self._lock:
            return Distribution(tuple(accumulate(self._counts)), self._total)
