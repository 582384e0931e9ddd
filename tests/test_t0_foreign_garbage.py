"""Strangers' bytes give Tocs or our own errors, whatever index they pretend to be."""

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.errors import IndexerError
from indexer.foreign.embedded import TAIL_SIZE, Promise, find_toc, read_toc
from indexer.foreign.facts import BlobFacts
from indexer.spans.scan import Limits
from indexer.toc_codec import decode_head, encode_toc
from tests.fuzz.foreign import run
from tests.support.foreign_layers import DIALECTS, LIVING, MIXED, write_layer
from tests.support.foreign_reading import toc_of
from tests.support.spans import read_span

_LAYERS = {name: write_layer(MIXED, name, chunk_size=1000) for name in LIVING}


@settings(max_examples=300)
@given(st.data())
def test_a_mutated_table_gives_a_toc_or_our_error(data):
    layer = _LAYERS[data.draw(st.sampled_from(LIVING))]
    text = bytearray(layer.json)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = min(len(text), start + data.draw(st.integers(0, 6)))
        text[start:end] = data.draw(st.one_of(st.binary(max_size=4), st.sampled_from(_JSON_PIECES)))
    place = find_toc(layer.blob[-TAIL_SIZE:], len(layer.blob))
    finished = DIALECTS["stargz zstd"].finish(layer.blob[: place.payload_end], bytes(text))
    try:
        toc = toc_of(finished, Promise())
    except IndexerError:
        return
    assert decode_head(encode_toc(toc)).toc() == toc
    for span in toc.spans:
        with suppress(IndexerError):
            read_span(span, finished.blob[span.compressed_start : span.compressed_end], b"")


_JSON_PIECES = [b"0", b"-1", b"9223372036854775807", b"1e9", b'""', b"null", b"{}", b"\\u0000", b'"chunk"']


@settings(max_examples=200)
@given(st.data())
def test_a_damaged_blob_gives_our_errors_only(data):
    layer = _LAYERS[data.draw(st.sampled_from(LIVING))]
    place = find_toc(layer.blob[-TAIL_SIZE:], len(layer.blob))
    blob = bytearray(layer.blob)
    for _ in range(data.draw(st.integers(1, 3))):
        blob[data.draw(st.integers(place.start - 20, len(blob) - 1))] ^= data.draw(st.integers(1, 255))
    damaged = bytes(blob[: data.draw(st.integers(place.start, len(blob)))])
    for candidate in (bytes(blob), damaged):
        with suppress(IndexerError):
            found = find_toc(candidate[-TAIL_SIZE:], len(candidate))
            if found:
                region = candidate[found.start : found.end]
                read_toc(region, found, Promise(), BlobFacts("sha256:" + "0" * 64, len(candidate)), Limits())


@given(st.binary(max_size=200))
def test_any_tail_gives_a_place_or_our_error(tail):
    for ending in (b"", b"GNUlInUx", b"GnUlInUx"):
        with suppress(IndexerError):
            find_toc(tail + ending, 1000)


def test_a_short_run_of_the_fuzz_target_finds_nothing():
    counts = run(cases=150, seed=5)
    assert min(counts.values()) > 50


@pytest.mark.stress
def test_a_long_run_of_the_fuzz_target_finds_nothing():
    run(cases=10_000, seed=6)
