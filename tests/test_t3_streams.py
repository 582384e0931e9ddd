"""Spans that land as they pass: many by one request, or all where a server knows no ranges."""

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from indexer.errors import FormatError
from indexer.spans.rows import make_spans
from indexer.toc import SpanTable
from lazyfs.cache.cache import Cache
from lazyfs.errors import RangeRefused, Unreachable
from lazyfs.image.reading.readahead import ReadAheadSettings
from lazyfs.image.reading.span_pour import SpanPour
from tests.support.layers import ENCODINGS, build
from tests.test_t3_layer import TAR, MemoryBlob, lazy

AHEAD = ReadAheadSettings(after_bytes=64 << 10, far_bytes=128 << 10)
BUILT = {name: (encode(TAR), build(encode(TAR))) for name, encode in ENCODINGS.items()}


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(tmp_path / "cache")


class RangelessBlob(MemoryBlob):
    """At a server that knows no ranges: what lies far in is refused."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.pulls = 0
        self.reaches = trio.Event()
        self.fails_at: int | None = None

    async def fetch(self, start, end, consume):
        if start:
            await self.before()
            raise RangeRefused("the server ignores ranges", status=200)
        return await super().fetch(start, end, consume)

    async def stream(self, start, end, consume):
        await self.fetch(start, end, lambda _: None)
        await super().stream(start, end, consume)

    async def pull(self, consume):
        self.pulls += 1
        for at in range(0, self.size, 30_000):
            if self.fails_at is not None and at >= self.fails_at:
                raise Unreachable("gone")
            await trio.to_thread.run_sync(consume, memoryview(self.data)[at : at + 30_000])


@settings(max_examples=60)
@given(st.sampled_from(sorted(ENCODINGS)), st.integers(100, 300_000), st.integers(0, 30), st.integers(1, 30))
def test_spans_come_out_whatever_the_cuts(name, size, first, count):
    data, built = BUILT[name]
    spans = [s for s in built.toc.spans if first <= s.number < first + count]
    spans = [s for s in spans if s.skip == 0 or spans[0].compressed_start == s.compressed_start]
    if not spans:
        return
    start, end = spans[0].compressed_start, max(span.compressed_end for span in spans)

    def window_of(span):
        at = span.uncompressed_start
        return TAR[max(at - 32768, 0) : at]

    def unpack(groups, compressed):
        return make_spans(groups, compressed, groups[0][0].compressed_start, window_of)

    pour = SpanPour(spans, start, unpack)
    found = []
    for at in range(start, end, size):
        for made in pour.feed(memoryview(data)[at : min(at + size, end)]):
            found += made.parts()
    assert [span for span, _ in found] == spans
    assert all(bytes_ == TAR[span.uncompressed_start : span.uncompressed_end] for span, bytes_ in found)


@pytest.mark.expect_log(r"knows no ranges")
@pytest.mark.parametrize("name", [n for n in ENCODINGS if n != "zstd frame" and "size" not in n])
async def test_a_layer_without_ranges_is_streamed_whole_once(name, cache):
    blob = RangelessBlob(ENCODINGS[name](TAR))
    async with lazy(blob, cache, build(blob.data)) as layer:
        rest = range(len(TAR) // 2, len(TAR) - 50_000, 50_000)
        async with trio.open_nursery() as nursery:
            for start in rest:
                nursery.start_soon(layer.read, start, 50_000)
        for start in range(0, len(TAR) - 50_000, 50_000):
            assert await layer.read(start, 50_000) == TAR[start : start + 50_000]
    assert blob.pulls == 1


@pytest.mark.expect_log(r"knows no ranges")
@pytest.mark.expect_log(r"fetching from byte .*: gone")
async def test_readers_behind_the_frontier_are_served_as_it_passes(cache):
    blob = RangelessBlob(ENCODINGS["gzip -1"](TAR))
    blob.fails_at = blob.size // 2
    async with lazy(blob, cache, build(blob.data)) as layer:
        end = len(TAR) - 4096
        outcomes: dict[int, bytes | None] = {}

        async def read(start: int) -> None:
            try:
                outcomes[start] = await layer.read(start, 4096)
            except Unreachable:
                outcomes[start] = None

        async with trio.open_nursery() as nursery:
            for start in (200_000, end):
                nursery.start_soon(read, start)
        assert outcomes == {200_000: TAR[200_000:204_096], end: None}
        blob.fails_at = None
        assert await layer.read(end, 4096) == TAR[end:]
    assert blob.pulls == 2


@pytest.mark.expect_log(r"knows no ranges")
async def test_without_room_in_the_cache_each_pass_still_serves_its_readers(cache, monkeypatch):
    monkeypatch.setattr("lazyfs.cache.layer_entry.LayerEntry.put", lambda *_: False)
    blob = RangelessBlob(ENCODINGS["gzip -1"](TAR))
    async with lazy(blob, cache, build(blob.data)) as layer:
        assert await layer.read(500_000, 4096) == TAR[500_000:504_096]
        assert await layer.read(100_000, 4096) == TAR[100_000:104_096]
    assert blob.pulls == 2


@pytest.mark.parametrize("name", ENCODINGS)
async def test_what_is_brought_ahead_comes_by_few_requests(name, cache):
    blob = MemoryBlob(ENCODINGS[name](TAR))
    async with lazy(blob, cache, build(blob.data), read_ahead=AHEAD) as layer:
        for start in range(0, len(TAR), 50_000):
            size = min(50_000, len(TAR) - start)
            assert await layer.read(start, size) == TAR[start : start + size]
        assert layer.statistics().fetched.bytes_fetched <= len(blob.data) + 8 * len(blob.ranges)
    assert len(blob.ranges) <= 12


async def test_damage_in_a_stream_is_asked_for_once_more(cache):
    blob = MemoryBlob(ENCODINGS["gzip -0"](TAR))
    good = blob.data
    blob.data = good[:1_000_000] + bytes([good[1_000_000] ^ 1]) + good[1_000_001:]
    whole = blob.stream

    async def damaged_once(start, end, consume):
        try:
            await whole(start, end, consume)
        finally:
            blob.data = good

    blob.stream = damaged_once
    async with lazy(blob, cache, build(good), max_bytes=8 << 20) as layer:
        assert await layer.read(100_000, 2_000_000) == TAR[100_000:2_100_000]
    assert len(blob.ranges) == 2


@pytest.mark.expect_log(r"fetching from byte .* ends")
@pytest.mark.parametrize("max_bytes", [64 << 10, 8 << 20])
async def test_a_frame_that_ends_before_its_spans_is_damage_and_not_asked_for_again(max_bytes, cache):
    blob = MemoryBlob(ENCODINGS["zstd frame"](TAR))
    built = build(blob.data)
    *spans, before, last = built.toc.spans
    short = SpanTable.from_spans([*spans, before, last._replace(compressed_end=before.compressed_end)])
    built = replace(built, toc=replace(built.toc, spans=short))
    async with lazy(blob, cache, built, max_bytes=max_bytes) as layer:
        with pytest.raises(FormatError, match="ends"):
            await layer.read(last.uncompressed_start, 4096)
    asked = sum(end - start for start, end in blob.ranges)
    assert asked <= 2 * before.compressed_end  # of a stream what is damaged is asked for once more
