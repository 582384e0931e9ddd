"""A progress bar on stderr for pulls, on a terminal only."""

import sys
import threading
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, Self

if TYPE_CHECKING:
    from tqdm import tqdm


class PullBar:
    """One bar over all layers under way. Called from any thread as a `Progress`; a context manager."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._lock = threading.Lock()
        self._done: dict[str, int] = {}
        self._bar: tqdm[NoReturn] | None = None
        self._wanted = sys.stderr.isatty()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, digest: str, done: int, total: int) -> None:
        """A layer has come to `done` of `total` bytes."""
        if not self._wanted:
            return
        with self._lock:
            self._bar = bar = self._bar or self._begin()
            if digest not in self._done:
                bar.total = (bar.total or 0) + total
                self._done[digest] = 0
            bar.update(done - self._done[digest])
            self._done[digest] = done

    def _begin(self) -> "tqdm[NoReturn]":
        from tqdm import tqdm  # noqa: PLC0415  # most commands never show a bar

        return tqdm(
            desc=self._label,
            total=0,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            file=sys.stderr,
            leave=False,
        )
