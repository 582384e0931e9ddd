"""Spans that follow each other in one deflate stream, inflated in one go.

Each can be entered alone. But each entry takes a window, an inflater, and a dozen calls that let go of the
interpreter's lock and have to get it back, among threads that do the same.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from indexer.errors import DigestMismatch, FormatError
from indexer.spans.by_compression import read_spans
from indexer.spans.check import check_content
from indexer.toc import Entry, Proof, Span

_MOST_OUTPUT: Final = 1 << 20
_DEFLATE: Final = frozenset({Entry.DEFLATE, Entry.GZIP_MEMBER})

Group = Sequence[Span]
"""Spans that share an entry."""

WindowOf = Callable[[Span], bytes]
"""Gives a span's window, decompressed; b"" where it has none."""


class Made(NamedTuple):
    """Verified bytes.

    Attributes:
        spans: one, or several back to back.
        data: all their bytes, padding included.
    """

    spans: Sequence[Span]
    data: bytes

    def parts(self) -> Iterator[tuple[Span, bytes | memoryview]]:
        """Each span with its own bytes."""
        if len(self.spans) == 1:
            yield self.spans[0], self.data
            return
        view, first = memoryview(self.data), self.spans[0].uncompressed_start
        for span in self.spans:
            yield span, view[span.uncompressed_start - first : span.uncompressed_end - first]


def make_spans(
    groups: Sequence[Group], data: bytes | memoryview, start: int, window_of: WindowOf
) -> Iterator[Made]:
    """Decompress and verify all spans of some entries, one or several at a time.

    Args:
        groups: the spans by entry, in order.
        data: compressed bytes, from the first entry to the last one's end.
        start: offset of the first of them in the layer.
        window_of: gives their windows, of which not all may be needed.

    Raises:
        FormatError: the bytes are damaged.
        LimitExceeded: too many of them would have to be decompressed at once.
        DigestMismatch: they are not those a span promises.
    """
    for row in _rows(groups):
        made = _make_row([group[0] for group in row], data, start, window_of) if len(row) > 1 else None
        if made is not None:
            yield made
            continue
        for group in row:
            end = max(span.compressed_end for span in group)
            compressed = data[group[0].compressed_start - start : end - start]
            contents = read_spans(group, compressed, window_of(group[0]))
            for span, content in zip(group, contents, strict=True):
                yield Made((span,), content)


def _rows(groups: Sequence[Group]) -> Iterator[list[Group]]:
    """The same, those together that are made in one go."""
    row: list[Group] = []
    size = 0
    for group in groups:
        size += group[-1].uncompressed_end - group[0].uncompressed_start
        if row and (size > _MOST_OUTPUT or not _follows(row[-1], group)):
            yield row
            row, size = [], group[-1].uncompressed_end - group[0].uncompressed_start
        row.append(group)
    if row:
        yield row


def _follows(before: Group, group: Group) -> bool:
    """Whether what comes out of the one entry goes on with what comes out of the other."""
    if len(before) > 1 or len(group) > 1:
        return False
    first, second = before[0], group[0]
    return (
        first.entry in _DEFLATE
        and second.entry in _DEFLATE
        and first.uncompressed_end == second.uncompressed_start
        and 0 <= first.compressed_end - second.compressed_start <= 1  # a byte may belong to both
        and not (first.padding or second.padding or first.skip or second.skip)
        and Proof.COMPRESSED not in (first.proof, second.proof)
    )


def _make_row(row: Sequence[Span], data: bytes | memoryview, start: int, window_of: WindowOf) -> Made | None:
    """Spans that follow each other, in one go; None where one is wrong: which, each tells by itself."""
    from indexer.spans.gzip_read import inflate  # noqa: PLC0415  # most mounts need one compression

    first, last = row[0], row[-1]
    size = last.uncompressed_end - first.uncompressed_start
    compressed = data[first.compressed_start - start : last.compressed_end - start]
    with suppress(FormatError, DigestMismatch):
        made = Made(row, inflate(first, compressed, window_of(first), size))
        for span, content in made.parts():
            check_content(span, content)
        return made
    return None
