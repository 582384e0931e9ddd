"""A progress bar on stderr for pulls, on a terminal only."""

import sys
import threading
from types import TracebackType
from typing import Self

from tqdm import tqdm


class PullBar:
    """One bar over all layers under way. Called from any thread as a `Progress`; a context manager."""

    def __init__(self, label: str) -> None:
        self._lock = threading.Lock()
        self._done: dict[str, int] = {}
        self._bar = tqdm(
            desc=label,
            total=0,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            file=sys.stderr,
            disable=not sys.stderr.isatty(),
            leave=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def __call__(self, digest: str, done: int, total: int) -> None:
        """A layer has come to `done` of `total` bytes."""
        with self._lock:
            if digest not in self._done:
                self._bar.total = (self._bar.total or 0) + total
                self._done[digest] = 0
            self._bar.update(done - self._done[digest])
            self._done[digest] = done
