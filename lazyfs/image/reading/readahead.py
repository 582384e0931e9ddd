"""Recognises readers that go through a layer in order, so that what comes next is there before they ask.

The kernel's own read-ahead is kept small: it cannot know what a byte costs. Here a run of reads must first
show itself, by reading nearly everything on its way. At first it is never run ahead of by more than it has
read, so that at most half of what a run moves is in vain; once it has gone far, by as much as keeps the line
busy. Decides only: no clock, no I/O.
"""

from typing import Final

from msgspec import Struct

_FAR_FACTOR: Final = 4


class ReadAheadSettings(Struct, frozen=True):
    """How far to run ahead. All in uncompressed bytes, except the counts.

    Attributes:
        after_bytes: bytes in a row that make a run.
        far_bytes: bytes in a row after which it is likely to go on for long.
        most_reach: how far ahead at most; 0 turns it off.
        most_step: how much to bring at once at most, while the reader goes on.
        slack: how far reads of one run may be out of order, or leave gaps.
        runs: how many runs of a layer are followed at once.
    """

    after_bytes: int = 256 << 10
    far_bytes: int = 1 << 20
    most_reach: int = 128 << 20
    most_step: int = 16 << 20
    slack: int = 256 << 10
    runs: int = 8


class _Run:
    __slots__ = ("brought", "next", "read", "start")

    def __init__(self, start: int, end: int) -> None:
        self.start = start
        self.next = end
        self.read = end - start
        self.brought = end

    @property
    def is_dense(self) -> bool:
        """Whether three quarters of what lies behind were read."""
        return 4 * self.read >= 3 * (self.next - self.start)


class ReadAhead:
    """The runs of one layer's readers."""

    def __init__(self, settings: ReadAheadSettings) -> None:
        self._settings = settings
        self._runs: list[_Run] = []  # the one used last comes last

    def note(self, start: int, end: int, worth: int | None = None) -> tuple[int, int] | None:
        """Take note of a read of [start, end); the range to bring now, if any.

        The range may pass the layer's end.

        Args:
            start: first byte that is read.
            end: their end.
            worth: how far ahead is worth going, by what the line carries; None if that is not known.
        """
        slack = self._settings.slack
        runs = self._runs
        for number in range(len(runs) - 1, -1, -1):
            run = runs[number]
            if run.next - slack <= start <= run.next + slack:
                if number != len(runs) - 1:
                    runs.append(runs.pop(number))
                run.next = max(run.next, end)
                run.read += end - start
                return self._next(run, worth)
        if len(runs) >= self._settings.runs:
            del runs[0]
        runs.append(_Run(start, end))
        return None

    def _next(self, run: _Run, worth: int | None) -> tuple[int, int] | None:
        settings = self._settings
        if run.read < settings.after_bytes or not run.is_dense:
            return None
        likely = run.read if run.read < settings.far_bytes else _FAR_FACTOR * run.read
        reach = min(likely, settings.most_reach, settings.most_reach if worth is None else worth)
        step = min(reach // 2, settings.most_step)
        if run.brought - run.next > reach - step:
            return None
        first, run.brought = max(run.brought, run.next), run.next + reach
        return (first, run.brought) if run.brought > first else None
