"""What comes with a span that a reader waits for, where the line would be idle meanwhile."""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from indexer.errors import IndexerError
from indexer.member_table import FileRanges
from indexer.toc import SpanTable
from lazyfs.cache.layer_entry import LayerEntry
from lazyfs.image.reading.fetcher import SpanFetcher
from lazyfs.image.reading.plan import beside
from lazyfs.source.line import Line

_MOST: Final = 1 << 20
_LEAST_MISS_S: Final = 0.02  # what a miss is worth however near the registry is, as it costs processors, too

_log = logging.getLogger(__name__)


class Beside:
    """Of one layer.

    Args:
        spans: its spans.
        fetcher: knows what its line carries.
        line: knows how long that is.
        file_ranges: tells where files lie; asked once, when that counts for the first time.
    """

    def __init__(
        self, spans: SpanTable, fetcher: SpanFetcher, line: Line, file_ranges: Callable[[], FileRanges]
    ) -> None:
        self._spans = spans
        self._fetcher = fetcher
        self._line = line
        self._file_ranges = file_ranges
        self._files: FileRanges | None = None

    def __repr__(self) -> str:
        return f"<Beside on {self._line!r}>"

    def choose(
        self, start: int, missing: Sequence[int], entry: LayerEntry, comes: Callable[[int], bool]
    ) -> list[int]:
        """Numbers of the spans to bring. Costs no more for what is here than a look at its marks.

        Args:
            start: first byte that is read.
            missing: spans that are waited for, not none.
            entry: tells what is here.
            comes: says of a span that it comes by itself.
        """
        round_trip_s = self._line.round_trip_s
        if not round_trip_s:
            return []
        room = min(self._fetcher.carried(max(round_trip_s, _LEAST_MISS_S), round_trip_s), _MOST)
        waited_for = sum(self._spans[number].compressed_size for number in missing)
        room -= self._fetcher.bytes_under_way - waited_for
        if room <= 0:
            return []
        under_way = self._fetcher.is_under_way

        def left(numbers: range) -> Iterator[int]:
            absent = absent_spans(self._spans, entry, numbers)
            return (number for number in absent if not under_way(number) and not comes(number))

        return beside(self._spans, missing, room, left, self._file_of(start))

    def _file_of(self, start: int) -> range:
        """The spans of the file with the byte `start`; none where that is not known."""
        if self._files is None:
            try:
                self._files = self._file_ranges()
            except IndexerError as error:
                _log.info("where files lie is not known: %s", error)
                self._files = FileRanges()
        found = self._files.around(start)
        if found is None:
            return range(0)
        return self._spans.covering(found[0], min(found[1], self._spans.uncompressed_size))


def absent_spans(spans: SpanTable, entry: LayerEntry, numbers: range) -> Iterator[int]:
    """Those of neighbouring spans, up or down, of which something is not here; in the same order.

    Nothing is done for a span that is here: marks are searched, and there is one for each leaf.
    """
    if not numbers:
        return
    up = numbers.step > 0
    first, last = min(numbers[0], numbers[-1]), max(numbers[0], numbers[-1])
    start, end = spans[first].first_leaf, spans[last].end_leaf
    while (leaf := entry.first_missing(start, end) if up else entry.last_missing(start, end)) is not None:
        number = spans.of_leaf(leaf)
        yield number
        if up:
            start = spans[number].end_leaf
        else:
            end = spans[number].first_leaf
