"""How far away a registry is: seconds from a request to its answer."""

import threading
from collections import deque
from typing import Final

_SAMPLES: Final = 16
_LEAST_SAMPLES: Final = 3  # before they are believed


class Line:
    """Measured on the requests that are made anyway: the best of late, as all else disturbs. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._heads: deque[float] = deque(maxlen=_SAMPLES)

    def __repr__(self) -> str:
        return f"<Line of {self.round_trip_s * 1000:.1f} ms>"

    def answered(self, seconds: float) -> None:
        """The head of an answer came so long after the request, on a connection that was open already."""
        with self._lock:
            self._heads.append(seconds)

    @property
    def round_trip_s(self) -> float:
        """Seconds from a request to its answer; 0 where that is not known yet."""
        with self._lock:
            return min(self._heads) if len(self._heads) >= _LEAST_SAMPLES else 0.0
