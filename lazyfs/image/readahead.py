"""Recognises readers that go through a layer in order, so that what comes next is there before they ask.

The kernel's own read-ahead is kept small: it cannot know what a byte costs. Here a run of reads must first
show itself, by reading nearly everything on its way; and it is never run ahead of by more than it has read,
so that at most half of what a run moves is in vain. Decides only: no clock, no I/O.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReadAheadSettings:
    """How far to run ahead. All in uncompressed bytes, except the counts.

    Attributes:
        after_bytes: bytes in a row that make a run.
        most_reach: how far ahead at most; 0 turns it off.
        slack: how far reads of one run may be out of order, or leave gaps.
        runs: how many runs of a layer are followed at once.
    """

    after_bytes: int = 1 << 20
    most_reach: int = 32 << 20
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

    def note(self, start: int, end: int) -> tuple[int, int] | None:
        """Take note of a read of [start, end); the range to bring now, if any.

        The range may pass the layer's end.
        """
        slack = self._settings.slack
        runs = self._runs
        for number in range(len(runs) - 1, -1, -1):
            run = runs[number]
            if run.next - slack <= start <= run.next + slack:
                if number != len(runs) - 1:
                    runs.append(runs.pop(number))
                return self._go_on(run, start, end)
        if len(runs) >= self._settings.runs:
            del runs[0]
        runs.append(_Run(start, end))
        return None

    def _go_on(self, run: _Run, start: int, end: int) -> tuple[int, int] | None:
        run.next = max(run.next, end)
        run.read += end - start
        reach = min(run.read, self._settings.most_reach)
        if run.read < self._settings.after_bytes or not run.is_dense or run.brought - run.next >= reach // 2:
            return None
        first, run.brought = max(run.brought, run.next), run.next + reach
        return (first, run.brought) if run.brought > first else None
