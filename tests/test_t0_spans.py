"""Spans of every encoding: what is read from a checkpoint is what the whole stream says."""

import ctypes
import queue
import random
import struct
import threading
import zlib
from collections import deque
from io import BytesIO
from itertools import pairwise, repeat

import indexed_gzip
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.build import LayerBuilder
from indexer.digest import content_digest
from indexer.errors import DigestMismatch, FormatError, IndexerError, LimitExceeded, Unsupported
from indexer.spans import deflate_resume, libz
from indexer.spans.by_compression import sniff
from indexer.spans.scan import Limits
from indexer.toc import Compression, Entry
from indexer.toc_codec import decompress_window
from tests.support.layers import ENCODINGS, build, digest_of, gzip_layer, gzip_with_fields, zstd_frame
from tests.support.spans import digests_of, read_span
from tests.support.tars import file, tar


def _tar_bytes(seed: int = 1, size: int = 1_500_000) -> bytes:
    """Text with far repetitions, noise, and zeros: blocks of every type come out of it."""
    rng = random.Random(seed)
    words = [rng.randbytes(rng.randint(2, 9)) for _ in range(3000)]
    parts = []
    left = size
    while left > 0:
        kind = rng.random()
        if kind < 0.7:
            part = b" ".join(rng.choices(words, k=4000))
        elif kind < 0.9:
            part = rng.randbytes(rng.randint(1, 60_000))
        else:
            part = bytes(rng.randint(1, 200_000))
        parts.append(part)
        left -= len(part)
    return tar(*(file(b"f%d" % n, part) for n, part in enumerate(parts)))


TAR = _tar_bytes()
SMALL_TAR = _tar_bytes(2, 300_000)


@pytest.mark.parametrize("name", ENCODINGS)
def test_every_span_reads_as_the_stream_says(name):
    blob = ENCODINGS[name](TAR)
    built = build(blob)
    toc = built.toc
    assert toc.header.diff_id == digest_of(TAR)
    assert toc.spans.uncompressed_size == len(TAR)
    assert len(toc.spans) > 5
    for span in toc.spans:
        window = decompress_window(built.windows[span.window_start : span.window_end])
        data = blob[span.compressed_start : span.compressed_end]
        assert read_span(span, data, window) == TAR[span.uncompressed_start : span.uncompressed_end]


@pytest.mark.parametrize("name", ENCODINGS)
def test_any_cut_of_the_input_gives_the_same_toc(name):
    blob = ENCODINGS[name](SMALL_TAR)
    whole = build(blob)
    assert build(blob, step=997) == whole
    assert build(blob, step=65_537) == whole


def _gzip_of_blocks(pieces: list[bytes], empty_blocks: int) -> bytes:
    """Each piece a block of its own, and after it so many empty ones: blocks that start at one place."""
    raw = zlib.compressobj(6, zlib.DEFLATED, 31)
    parts = []
    for piece in pieces:
        parts.append(raw.compress(piece))
        parts.append(raw.flush(zlib.Z_SYNC_FLUSH))
        parts.append(b"\x00\x00\x00\xff\xff" * empty_blocks)
    return b"".join(parts) + raw.flush()


@pytest.mark.parametrize("before", [-2, -1, 0, 1])
def test_empty_blocks_around_a_checkpoint_give_the_same_toc_in_any_cuts(before):
    """Checkpoints lie at least 64 KiB apart; blocks start `before` that, and there are many."""
    data = tar(file(b"f", b"many words " * 20_000))
    ends = [0, (64 << 10) + before, (64 << 10) + before + 1, 150_000, len(data)]
    blob = _gzip_of_blocks([data[start:end] for start, end in pairwise(ends)], 300)
    whole = build(blob)
    assert whole.toc.header.diff_id == digest_of(data)
    assert len(whole.toc.spans) >= 2
    assert all(build(blob, step=step) == whole for step in (1, 4, 5, 6, 1009))


def test_zlib_finds_what_zlib_ng_finds(monkeypatch):
    """The package brings zlib-ng; where it cannot be had, the system's zlib gives the same bytes."""
    assert libz._library().inflate.__name__ == "zng_inflate"
    blobs = [ENCODINGS[name](TAR) for name in ENCODINGS if name.startswith("gzip")]
    expected = [build(blob) for blob in blobs]
    system = libz._zlib(ctypes.CDLL("libz.so.1"))
    monkeypatch.setattr(libz, "_library", lambda: system)
    assert [build(blob) for blob in blobs] == expected


def test_spans_are_as_large_as_asked_where_blocks_are_small():
    toc = build(gzip_layer(TAR), span_size=128 << 10).toc
    sizes = [span.size for span in toc.spans][:-1]
    assert min(sizes) >= 128 << 10
    assert max(sizes) < 512 << 10


def test_windows_hold_only_what_later_data_refers_to():
    """The sparse window gives the same bytes as the full one, and most of it is zeros."""
    blob = gzip_layer(TAR)
    built = build(blob)
    sparse = [
        decompress_window(built.windows[s.window_start : s.window_end])
        for s in built.toc.spans
        if s.entry is Entry.DEFLATE
    ]
    assert all(len(window) <= 32768 for window in sparse)
    kept = sum(len(window) - window.count(0) for window in sparse)
    assert 0 < kept < 0.7 * 32768 * len(sparse)


def test_indexed_gzip_reads_the_same_bytes_at_our_checkpoints():
    """An independent reader agrees about what stands where."""
    blob = gzip_layer(TAR)
    spans = build(blob).toc.spans
    with indexed_gzip.IndexedGzipFile(BytesIO(blob)) as oracle:
        for span in spans:
            oracle.seek(span.uncompressed_start)
            assert digests_of(oracle.read(span.size)) == {"root": span.root, "blake3": span.blake3}


@pytest.mark.parametrize("name", ["plain", "gzip -9", "zstd frame"])
def test_a_span_is_what_its_blake3_says_and_its_root_is_for_leaves(name):
    blob = ENCODINGS[name](SMALL_TAR)
    built = build(blob)
    span = built.toc.spans[1]
    window = decompress_window(built.windows[span.window_start : span.window_end])
    data = blob[span.compressed_start : span.compressed_end]
    content = SMALL_TAR[span.uncompressed_start : span.uncompressed_end]
    assert read_span(span._replace(root=bytes(32)), data, window) == content
    with pytest.raises(DigestMismatch, match=content_digest(content).hex()):
        read_span(span._replace(blake3=span.root), data, window)


def test_pieces_of_a_large_zstd_frame_share_its_entry():
    spans = build(zstd_frame(TAR)).toc.spans
    assert {span.compressed_start for span in spans} == {0}
    assert [span.skip for span in spans] == [span.uncompressed_start for span in spans]


def test_spans_smaller_than_a_window_are_refused():
    with pytest.raises(Unsupported, match="32768"):
        build(TAR, span_size=32767)
    assert build(gzip_layer(TAR), span_size=32768).toc.spans[1].size >= 32768


def test_a_layer_without_a_promise_is_taken_as_it_is():
    blob = gzip_layer(TAR)
    with LayerBuilder(len(blob), None) as builder:
        builder.feed(blob)
        assert builder.finish().toc.header.layer_digest == digest_of(blob)


def test_an_empty_layer_has_no_members():
    for blob in (b"", bytes(1024), gzip_layer(b""), gzip_layer(bytes(1024))):
        toc = build(blob).toc
        assert toc.members == []
        assert toc.spans.uncompressed_size == toc.header.uncompressed_size


def test_zero_padding_after_the_last_member_is_no_content():
    assert build(gzip_layer(TAR) + bytes(512)).toc.spans.uncompressed_size == len(TAR)


@pytest.mark.parametrize(
    ("blob", "error"),
    [
        (gzip_layer(TAR)[:-1], FormatError),
        (gzip_layer(TAR)[:5000], FormatError),
        (gzip_layer(TAR) + b"garbage", FormatError),
        (gzip_layer(TAR)[:-8] + bytes(8), FormatError),
        (zstd_frame(TAR)[:-1], FormatError),
        (zstd_frame(TAR) + b"garbage", FormatError),
        (b"\x1f\x8b", FormatError),
        (b"BZh91AY", Unsupported),
        (b"\xfd7zXZ\0", Unsupported),
        (b"\x04\x22\x4d\x18abc", Unsupported),
        (b"hello world" * 100, FormatError),
    ],
)
def test_a_damaged_or_foreign_layer_is_refused(blob, error):
    with pytest.raises(error):
        build(blob)


def test_a_layer_that_is_not_what_its_descriptor_promises_is_refused():
    blob = gzip_layer(TAR)
    for size, digest in ((len(blob), digest_of(b"")), (len(blob) + 1, digest_of(blob))):
        with LayerBuilder(size, digest) as builder:
            builder.feed(blob)
            with pytest.raises((DigestMismatch, FormatError)):
                builder.finish()
    with LayerBuilder(100, digest_of(blob)) as builder, pytest.raises(FormatError, match="longer"):
        builder.feed(blob)


@pytest.mark.parametrize("encode", [gzip_layer, zstd_frame])
def test_a_bomb_is_refused_before_it_is_large(encode):
    bomb = encode(bytes(60 << 20))
    stored = []
    limits = Limits(ratio_floor=4 << 20, max_ratio=50)
    with pytest.raises(LimitExceeded, match=r"a decompression bomb; .* raise max_ratio$"):
        build(bomb, limits=limits, store=stored.append)
    assert sum(map(len, stored)) < 16 << 20
    with pytest.raises(LimitExceeded, match=r"a decompression bomb; .* raise max_layer_gib$"):
        build(bomb, limits=Limits(max_uncompressed=4 << 20), store=stored.append)


def test_what_is_given_up_stores_no_more(monkeypatch):
    """Who gives it up waits for it."""
    begun, given_up, stored = threading.Event(), threading.Event(), []
    put = queue.Queue.put

    def noting(jobs, job):
        put(jobs, job)
        if job is None:
            given_up.set()

    def store(piece):
        stored.append(piece)
        begun.set()
        assert given_up.wait(20)

    monkeypatch.setattr(queue.Queue, "put", noting)
    with LayerBuilder(len(TAR), None, store=store) as builder:
        for start in range(0, len(TAR), 1 << 18):
            builder.feed(TAR[start : start + (1 << 18)])
        assert begun.wait(20)
    assert len(stored) == 1


def test_compressed_bytes_that_hold_nothing_are_refused_before_they_are_many():
    """Whoever reads the span, or waits for what its window is used for, has them in memory."""
    body = zlib.compressobj(6, zlib.DEFLATED, 31)
    head = body.compress(TAR[:200_000]) + body.flush(zlib.Z_FULL_FLUSH)
    empty_blocks = b"\x00\x00\x00\xff\xff" * 200_000
    with LayerBuilder(1 << 40, None) as builder:
        builder.feed(head)
        for _ in range(120):
            builder.feed(empty_blocks)
        with pytest.raises(LimitExceeded, match="next to nothing"):
            deque(map(builder.feed, repeat(empty_blocks, 20)))


def test_members_without_content_cost_what_their_bytes_cost(monkeypatch):
    handed = 0
    make = deflate_resume.IgzipDecompressor

    class Counting:
        def __init__(self, flag):
            self._inflater = make(flag)

        def decompress(self, data, size):
            nonlocal handed
            handed += len(data)
            return self._inflater.decompress(data, size)

        def __getattr__(self, name):
            return getattr(self._inflater, name)

    monkeypatch.setattr(deflate_resume, "IgzipDecompressor", Counting)
    empty, last = gzip_layer(b""), gzip_layer(b"x" * 1000)
    data = last + empty * 2000 + bytes(99) + last
    assert deflate_resume.read_members(data, 2000) == b"x" * 2000
    assert handed <= len(data) + 2001 * 4096


@pytest.mark.parametrize("before", [b"", gzip_layer(b"")])
@pytest.mark.parametrize("size", [10, 70_000, 1_000_000])
def test_a_members_header_may_be_of_any_length(before, size):
    layer = gzip_with_fields(SMALL_TAR).replace(b"name\0", b"n" * size + b"\0", 1)
    header = layer[: layer.index(b"comment\0") + 8]
    checksum = struct.pack("<H", zlib.crc32(header) & 0xFFFF)
    layer = header + checksum + layer[len(header) + 2 :]
    assert zlib.decompress(layer, 31) == SMALL_TAR
    assert deflate_resume.read_members(before + layer, len(SMALL_TAR)) == SMALL_TAR


def test_an_error_on_the_second_thread_reaches_the_caller():
    """The tar's error comes from the thread that parses it."""
    with pytest.raises(FormatError):
        build(gzip_layer(b"x" * 1_000_000))


def test_the_store_gets_every_byte_in_order():
    stored = []
    build(gzip_layer(TAR), store=stored.append)
    assert b"".join(stored) == TAR


@pytest.mark.parametrize("name", ["plain", "gzip -9", "gzip mixed blocks", "zstd frames"])
@settings(max_examples=60)
@given(data=st.data())
def test_damaged_spans_give_our_errors_only(name, data):
    blob = _BLOBS.setdefault(name, ENCODINGS[name](SMALL_TAR))
    built = _BUILT.setdefault(name, build(blob))
    span = data.draw(st.sampled_from(list(built.toc.spans)))
    window = decompress_window(built.windows[span.window_start : span.window_end])
    good = blob[span.compressed_start : span.compressed_end]
    mutated = bytearray(good)
    position = data.draw(st.integers(0, len(good) - 1))
    mutated[position] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(0, len(good)))
    for bad in (bytes(mutated), good[:cut]):
        try:
            output = read_span(span, bad, window)
        except IndexerError:
            continue
        assert output == SMALL_TAR[span.uncompressed_start : span.uncompressed_end]


_BLOBS: dict = {}
_BUILT: dict = {}


def test_sniffing_trusts_the_bytes():
    assert sniff(b"\x1f\x8b\x08") is Compression.GZIP
    assert sniff(struct.pack("<II", 0x184D2A5E, 4)) is Compression.ZSTD
    assert sniff(zstd_frame(b"x")) is Compression.ZSTD
    assert sniff(b"anything") is Compression.NONE
    assert sniff(zlib.compress(b"x")) is Compression.NONE
