"""What was read of layers, added up."""

from collections.abc import Iterable
from typing import NamedTuple

from lazyfs.image.reading.layer import LazyLayer


class Reads(NamedTuple):
    """Counts of reads.

    Attributes:
        hits: answered from the cache at once.
        misses: those that waited for a fetch.
        bytes: uncompressed bytes asked for by readers.
        failures: fetches that failed.
    """

    hits: int = 0
    misses: int = 0
    bytes: int = 0
    failures: int = 0


def reads_of(layer: LazyLayer) -> Reads:
    """Those of a layer since it was opened."""
    counted = layer.statistics()
    return Reads(counted.hits, counted.misses, counted.bytes_served, counted.fetched.failures)


def sum_of(counts: Iterable[Reads]) -> Reads:
    """All together."""
    return Reads(*map(sum, zip(Reads(), *counts, strict=True)))
