"""Spans that follow each other, made in one go: the same bytes as one by one, and as safe."""

import random
from contextlib import suppress
from itertools import groupby

import pytest

from indexer.errors import DigestMismatch, FormatError
from indexer.spans.deflate_resume import resume_members
from indexer.spans.rows import make_spans
from indexer.toc import SpanTable
from indexer.toc_codec import decompress_window
from tests.support.layers import ENCODINGS, build, gzip_layer
from tests.test_t0_spans import TAR


class Opened:
    """A layer with its table; remembers for which spans windows were asked."""

    def __init__(self, blob, spans=None):
        built = build(blob)
        self.blob, self.windows = blob, built.windows
        self.spans = list(built.toc.spans) if spans is None else spans
        self.asked = []

    def window_of(self, span):
        self.asked.append(span.number)
        return decompress_window(self.windows[span.window_start : span.window_end])

    def make(self, spans, blob=None):
        return list(self.making(spans, blob))

    def making(self, spans, blob=None):
        groups = [list(group) for _, group in groupby(spans, lambda span: span.compressed_start)]
        start, end = spans[0].compressed_start, max(span.compressed_end for span in spans)
        return make_spans(groups, (blob or self.blob)[start:end], start, self.window_of)


def _check(made, spans):
    parts = [part for each in made for part in each.parts()]
    assert [span for span, _ in parts] == list(spans)
    for span, data in parts:
        assert bytes(data) == TAR[span.uncompressed_start : span.uncompressed_end]
    for each in made:
        first, last = each.spans[0], each.spans[-1]
        assert each.data == TAR[first.uncompressed_start : last.uncompressed_end]


@pytest.mark.parametrize("name", ENCODINGS)
def test_any_stretch_of_spans_is_what_the_stream_says(name):
    layer = Opened(ENCODINGS[name](TAR))
    rng = random.Random(3)
    for _ in range(20):
        first = rng.randrange(len(layer.spans))
        spans = layer.spans[first : first + rng.randint(1, 12)]
        _check(layer.make(spans), spans)


def test_spans_with_gaps_between_them_are_entered_each():
    layer = Opened(gzip_layer(TAR))
    spans = layer.spans[::2]
    made = layer.make(spans)
    _check(made, spans)
    assert all(len(each.spans) == 1 for each in made)


def test_a_row_takes_one_window_and_is_no_longer_than_a_mebibyte():
    layer = Opened(gzip_layer(TAR))
    made = layer.make(layer.spans)
    _check(made, layer.spans)
    assert layer.asked == [each.spans[0].number for each in made]
    assert len(made) < len(layer.spans) / 4
    assert all(len(each.data) <= 1 << 20 for each in made)


def test_what_does_not_go_on_in_the_stream_is_entered_by_itself():
    """A table may say that a span follows where it does not: then its own entry counts."""
    blob = gzip_layer(TAR)
    spans = Opened(blob).spans
    first, second, third = spans[2:5]
    size = third.compressed_size
    assert second.bits
    moved = blob[: second.compressed_start] + blob[third.compressed_start : third.compressed_end] + blob[-99:]
    third = third._replace(
        number=3,
        compressed_start=second.compressed_start,
        compressed_end=second.compressed_start + size,
        uncompressed_start=second.uncompressed_start,
        uncompressed_end=second.uncompressed_start + third.size,
        first_leaf=second.first_leaf,
    )
    made = Opened(blob).make([first, third], moved)
    for each, original in zip(made, (first, spans[4]), strict=True):
        assert each.data == TAR[original.uncompressed_start : original.uncompressed_end]


@pytest.mark.parametrize("at", [0, 3, -1])
def test_what_is_damaged_is_named_and_what_stands_before_comes(at):
    layer = Opened(gzip_layer(TAR))
    spans = layer.spans[4:10]
    wrong = spans[at]
    spans[at] = wrong._replace(blake3=bytes(32))
    came = []
    with pytest.raises(DigestMismatch, match=f"span {wrong.number}\\b"):
        came.extend(made.spans[0] for made in layer.making(spans))
    assert came == spans[: spans.index(wrong._replace(blake3=bytes(32)))]
    middle = (wrong.compressed_start + wrong.compressed_end) // 2
    damaged = bytearray(layer.blob)
    damaged[middle : middle + 64] = bytes(64)
    with pytest.raises((DigestMismatch, FormatError)):
        layer.make(layer.spans[4:10], bytes(damaged))


def test_padding_and_proofs_of_compressed_bytes_are_seen_to():
    """Foreign tables have both."""
    layer = Opened(gzip_layer(TAR))
    table = SpanTable.from_spans(layer.spans)
    assert list(table) == layer.spans
    spans = layer.spans[3:6]
    spans[1] = spans[1]._replace(padding=1)
    with pytest.raises(DigestMismatch, match=f"span {spans[1].number}\\b"):
        layer.make(spans)


@pytest.mark.parametrize("bits", range(1, 8))
def test_any_first_byte_is_a_stream_or_damage(bits):
    """What stands there is a stranger's: a block of no kind is told like other damage."""
    for first in range(256):
        with suppress(FormatError):
            resume_members(bytes([first]) + bytes(50), bits, b"", 10_000)
