"""Whether to wait for bytes that are on their way in a stream, or to ask for them apart. Has no clock."""

from collections import deque
from typing import Final

_SAMPLES: Final = 32
_PATIENCE: Final = 1.5  # a stream that is behind brings more than what is waited for
_SLACK_S: Final = 0.03
_LONGEST_SILENCE_S: Final = 2.0
_FIRST_BYTES_S: Final = 1.0  # for as long a stream that has brought nothing yet is believed in


class Pace:
    """How a stream of bytes comes along.

    Args:
        now: when it was begun, in seconds of some clock.
    """

    def __init__(self, now: float) -> None:
        self._began = now
        self._received = 0
        self._arrivals: deque[tuple[float, int]] = deque([(now, 0)], maxlen=_SAMPLES)
        self._round_trip_s = 0.0

    def __repr__(self) -> str:
        return f"<Pace {self._received} bytes, {self.bytes_per_s:.0f} a second>"

    @property
    def received(self) -> int:
        """Bytes that have come."""
        return self._received

    @property
    def bytes_per_s(self) -> float:
        """The throughput of late; 0 while nothing has come."""
        first, last = self._arrivals[0], self._arrivals[-1]
        return (last[1] - first[1]) / max(last[0] - first[0], 1e-6)

    def arrived(self, size: int, now: float) -> None:
        """`size` more bytes have come."""
        if not self._received:
            self._round_trip_s = now - self._began
        self._received += size
        self._arrivals.append((now, self._received))

    def is_stalled(self, now: float) -> bool:
        """Whether nothing has come for so long that it may not come at all."""
        silence_s = now - self._arrivals[-1][0]
        if not self._received:
            return silence_s > _FIRST_BYTES_S
        return silence_s > min(max(4 * self._round_trip_s, 0.2), _LONGEST_SILENCE_S)

    def is_worth_waiting(self, to_come: int, apart: int, now: float) -> bool:
        """Whether waiting is no slower than asking for the same bytes by a request of their own.

        Args:
            to_come: bytes of the stream up to those that are wanted.
            apart: bytes that a request for them would bring.
            now: seconds of the clock.
        """
        if self.is_stalled(now):
            return False
        speed = self.bytes_per_s
        if not speed:
            return True
        apart_s = self._round_trip_s + 2 * apart / speed  # it would share the line with the stream
        return to_come / speed <= _PATIENCE * apart_s + _SLACK_S
