"""What many samples say: the median and how far they spread."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Self


@dataclass(frozen=True, slots=True)
class Spread:
    """Samples in three numbers."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """The spread of at least one value."""
        return cls(median(values), min(values), max(values))

    def ratio_to(self, baseline: "Spread") -> float | None:
        """The median as a multiple of the baseline's; None where that is 0."""
        return self.median / baseline.median if baseline.median else None
