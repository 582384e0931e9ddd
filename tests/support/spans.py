"""Layers for the cache: reproducible bytes cut into spans, with their digests."""

import random
from typing import TypedDict

from indexer.digest import content_digest, leaf_count, leaf_digests, merkle_root
from indexer.spans.by_compression import read_spans
from indexer.toc import Entry, Span, SpanTable

LAYER = "sha256:" + "1" * 64
TOC = "sha256:" + "2" * 64


def content(size: int, seed: int = 0) -> bytes:
    """`size` bytes: random ones, with runs of zeros that begin and end anywhere."""
    source = random.Random(seed)
    parts = []
    left = size
    while left > 0:
        length = min(left, source.choice([1, 100, 4096, 5000, 8192, 20000]))
        parts.append(bytes(length) if source.random() < 0.4 else source.randbytes(length))
        left -= length
    return b"".join(parts)


def read_span(span: Span, data: bytes | memoryview, window: bytes) -> bytes:
    """One span's uncompressed bytes, padding included."""
    return read_spans((span,), data, window)[0]


class Digests(TypedDict):
    """What a span says of its bytes."""

    root: bytes
    blake3: bytes


def digests_of(data: bytes) -> Digests:
    """The digests of a span with these bytes."""
    return {"root": merkle_root(leaf_digests(data)), "blake3": content_digest(data)}


def spans_of(data: bytes, span_size: int) -> SpanTable:
    """The table of `data` cut every `span_size` bytes."""
    spans = []
    first_leaf = 0
    for number, start in enumerate(range(0, len(data), span_size)):
        end = min(start + span_size, len(data))
        digests = digests_of(data[start:end])
        spans.append(Span(number, start, end, start, end, Entry.RAW, 0, 0, 0, 0, first_leaf, **digests))
        first_leaf += leaf_count(end - start)
    return SpanTable.from_spans(spans)


def wrong_leaves(data: bytes, spans: SpanTable, entry) -> list[int]:
    """The leaves that `entry` says it has, and that do not read as `data`."""
    wrong = []
    for span in spans:
        for leaf in range(span.first_leaf, span.end_leaf):
            start = span.uncompressed_start + 4096 * (leaf - span.first_leaf)
            end = min(start + 4096, span.uncompressed_end)
            if entry.has(leaf, leaf + 1) and entry.read(start, end - start) != data[start:end]:
                wrong.append(leaf)
    return wrong
