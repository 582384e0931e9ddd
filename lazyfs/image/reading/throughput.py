"""How fast bytes come while some are under way, and how many are worth asking for ahead. Has no clock."""

from collections import deque
from typing import Final

_SPAN_S: Final = 2.0  # of busy time that counts
_SAMPLES: Final = 64
_LEAST_BYTES: Final = 64 << 10  # fewer tell latency, not throughput

AHEAD_S: Final = 0.5
"""Seconds of throughput that are worth being under way: several round trips, even long ones."""

_LEAST_AHEAD: Final = 256 << 10


class Throughput:
    """Of one layer's source, over its busy time: pauses without requests do not count."""

    def __init__(self) -> None:
        self._under_way = 0
        self._since = 0.0  # when the clock of busy time was read last, while busy
        self._busy_s = 0.0
        self._came = 0
        self._samples: deque[tuple[float, int]] = deque([(0.0, 0)], maxlen=_SAMPLES)
        self._bytes_per_s: float | None = None

    def __repr__(self) -> str:
        return f"<Throughput {self.bytes_per_s or 0:.0f} bytes/s, {self._under_way} under way>"

    @property
    def bytes_per_s(self) -> float | None:
        """The throughput of late; None while too little has come."""
        return self._bytes_per_s

    def begun(self, now: float) -> None:
        """A request is sent."""
        self._tick(now)
        self._under_way += 1

    def arrived(self, size: int, now: float) -> None:
        """Bytes have come."""
        self._tick(now)
        self._came += size
        self._samples.append((self._busy_s, self._came))
        while len(self._samples) > 2 and self._busy_s - self._samples[1][0] >= _SPAN_S:
            self._samples.popleft()
        first_s, first = self._samples[0]
        if self._came - first >= _LEAST_BYTES and self._busy_s > first_s:
            self._bytes_per_s = (self._came - first) / (self._busy_s - first_s)

    def ended(self, now: float) -> None:
        """A request has ended, well or not."""
        self._tick(now)
        self._under_way -= 1

    def worth_ahead(self, deadline_s: float) -> int | None:
        """Compressed bytes that may be under way ahead of readers; None where nothing is known yet.

        Never more than come in a third of a reader's deadline, so that a reader who wants something else
        still gets it in time.
        """
        speed = self.bytes_per_s
        if speed is None:
            return None
        return int(min(max(speed * AHEAD_S, _LEAST_AHEAD), speed * deadline_s / 3))

    def _tick(self, now: float) -> None:
        if self._under_way:
            self._busy_s += max(now - self._since, 0.0)
        self._since = now
