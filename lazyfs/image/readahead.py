"""Recognises readers that go through a layer in order, so that what comes next is there before they ask.

The kernel's own read-ahead is kept small: it cannot know what a byte costs. Here a run of reads must first
show itself; then the reach ahead doubles with every half of it that the reader has used up. Decides only:
no clock, no I/O.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReadAheadSettings:
    """How far to run ahead. All in uncompressed bytes, except the counts.

    Attributes:
        after_reads: reads in a row that make a run.
        first_reach: how far ahead of a new run.
        most_reach: how far at most; 0 turns it off.
        slack: how far reads of one run may be out of order.
        runs: how many runs of a layer are followed at once.
    """

    after_reads: int = 3
    first_reach: int = 1 << 20
    most_reach: int = 32 << 20
    slack: int = 256 << 10
    runs: int = 8


class _Run:
    __slots__ = ("brought", "next", "reach", "reads")

    def __init__(self, end: int, reach: int) -> None:
        self.next = end
        self.reads = 1
        self.reach = reach
        self.brought = end


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
                return self._go_on(run, end)
        if len(runs) >= self._settings.runs:
            del runs[0]
        runs.append(_Run(end, min(self._settings.first_reach, self._settings.most_reach)))
        return None

    def _go_on(self, run: _Run, end: int) -> tuple[int, int] | None:
        run.next = max(run.next, end)
        run.reads += 1
        if run.reads < self._settings.after_reads or run.brought - run.next >= run.reach // 2:
            return None
        start, run.brought = max(run.brought, run.next), run.next + run.reach
        run.reach = min(2 * run.reach, self._settings.most_reach)
        return (start, run.brought) if run.brought > start else None
