"""What a few samples say, and what they do not: medians, and how sure one can be that one is smaller."""

import random
from collections.abc import Sequence
from statistics import median
from typing import Final, NamedTuple

_SEED: Final = 20_100_923
_LEAST: Final = 3
"""Fewer samples say nothing about their spread."""


class Interval(NamedTuple):
    """What holds with the asked confidence: `low` <= the true value <= `high`."""

    low: float
    high: float


class Change(NamedTuple):
    """How the second of two methods, or runs, compares with the first.

    Attributes:
        ratio: median of the second by median of the first.
        interval: of the ratio; None where there are too few samples.
    """

    ratio: float
    interval: Interval | None

    @property
    def verdict(self) -> str:
        """Whether the second is "faster" or "slower", or why neither can be said."""
        if self.interval is None:
            return f"too few samples to say (less than {_LEAST})"
        if self.interval.high < 1:
            return "faster"
        if self.interval.low > 1:
            return "slower"
        return "no difference shown: the interval includes 1"


def bootstrap_ratio(
    first: Sequence[float], second: Sequence[float], *, confidence: float = 0.95, rounds: int = 10_000
) -> Change:
    """The ratio of medians, with its percentile bootstrap interval.

    The same samples give the same interval. With few samples it is optimistic: no resample is outside of what
    was seen.

    Args:
        first: positive values, at least one.
        second: the same.
        confidence: of the interval.
        rounds: how many resamples are taken.
    """
    ratio = median(second) / median(first)
    if min(len(first), len(second)) < _LEAST:
        return Change(ratio, None)
    chance = random.Random(_SEED)
    ratios = sorted(
        median(chance.choices(second, k=len(second))) / median(chance.choices(first, k=len(first)))
        for _ in range(rounds)
    )
    cut = int(rounds * (1 - confidence) / 2)
    return Change(ratio, Interval(ratios[cut], ratios[-1 - cut]))
