"""A layer's whole address space, made by entering its blob at every span of a table, in order."""

import os
from collections.abc import Callable, Iterator, Sequence

from indexer.errors import FormatError, IndexerError
from indexer.spans.by_compression import read_spans
from indexer.spans.zstd import FrameReader
from indexer.toc import Entry, Span, SpanTable
from indexer.toc_codec import decompress_window

_PIECE = 1 << 20
_MOST_OVERLAP = 4  # times the blob's bytes that all spans together may want

Check = Callable[[], None]


def span_stream(
    spans: SpanTable, blob: int, blob_size: int, windows: bytes | memoryview, check: Check
) -> Iterator[bytes]:
    """The bytes of all spans in order, each as its digest says.

    Args:
        spans: the table.
        blob: descriptor of a file with the compressed bytes.
        blob_size: how many those are.
        windows: the windows file.
        check: called now and then; what it raises ends the work.

    Raises:
        FormatError: a span cannot be entered as the table says; the message names it.
        IndexerError: (or one of its kinds) the same.
    """
    left = _MOST_OVERLAP * blob_size + (_PIECE * 16)
    number = 0
    while number < len(spans):
        group = [spans[n] for n in spans.sharing_entry(number)]
        number = group[-1].number + 1
        end = max(span.compressed_end for span in group)
        left -= end - group[0].compressed_start
        if left < 0:
            raise FormatError("spans that overlap each other over and over")
        try:
            if len(group) > 1 and group[0].entry is Entry.ZSTD_FRAME:
                yield from _frame(group, blob, end, check)
            else:
                check()
                window = decompress_window(bytes(windows[group[0].window_start : group[0].window_end]))
                data = os.pread(blob, end - group[0].compressed_start, group[0].compressed_start)
                yield from read_spans(group, data, window)
        except IndexerError as error:
            raise FormatError(
                f"span {group[0].number} cannot be entered as the index says: {error}"
            ) from error


def _frame(group: Sequence[Span], blob: int, end: int, check: Check) -> Iterator[bytes]:
    reader = FrameReader(group)
    for start in range(group[0].compressed_start, end, _PIECE):
        check()
        for _, data in reader.feed(os.pread(blob, min(_PIECE, end - start), start)):
            yield data
    reader.close()
