"""A lazy layer: right bytes whatever is read, every span fetched once, every failure told to its readers."""

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
import trio

from indexer.errors import DigestMismatch
from indexer.toc import Extent
from lazyfs.cache.cache import Cache
from lazyfs.errors import Unreachable
from lazyfs.image.reading.fetcher import FetchSettings, SpanFetcher
from lazyfs.image.reading.layer import LazyLayer
from lazyfs.image.reading.plan import Piece, Run, plan_fetches, tail_pieces, tail_runs
from lazyfs.image.reading.readahead import ReadAheadSettings
from lazyfs.image.reading.traffic import Cause, Purpose, Traffic
from lazyfs.image.reading.waits import Wait
from tests.support.layers import ENCODINGS, build, digest_of, gzip_layer, zstd_frame
from tests.support.tars import file, gnu_sparse, tar

PIECE = 100_000
QUIET = ReadAheadSettings(most_reach=0)
_RANDOM = random.Random(5)
TAR = tar(*(file(b"f%d" % n, _RANDOM.randbytes(30_000) + bytes(20_000) + b"text " * 4000) for n in range(30)))


class MemoryBlob:
    """A blob in memory that counts and can be told to fail, stall or lie."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)
        self.ranges: list[tuple[int, int]] = []
        self.before: Callable = trio.lowlevel.checkpoint

    async def fetch(self, start: int, end: int, consume: Callable):
        self.ranges.append((start, end))
        await self.before()
        return await trio.to_thread.run_sync(consume, memoryview(self.data)[start:end])

    async def stream(self, start: int, end: int, consume: Callable) -> None:
        self.ranges.append((start, end))
        await self.before()

        def work() -> None:
            for at in range(start, end, PIECE):
                consume(memoryview(self.data)[at : min(at + PIECE, end)])

        await trio.to_thread.run_sync(work)

    async def pull(self, consume: Callable) -> None:
        raise AssertionError("a layer with an index is not pulled")


@asynccontextmanager
async def lazy(
    blob: MemoryBlob, cache: Cache, built=None, waited=None, **settings
) -> AsyncIterator[LazyLayer]:
    built = built or build(blob.data)
    toc, windows = built.toc, built.windows
    async with trio.open_nursery() as nursery:
        with cache.layer(
            toc.header.layer_digest, digest_of(windows), toc.header.device_size, toc.spans.leaves
        ) as entry:
            fetching = FetchSettings(**{"read_ahead": QUIET, **settings})
            fetcher = SpanFetcher(
                spans=toc.spans,
                entry=entry,
                read_window=lambda span: windows[span.window_start : span.window_end],
                blob=blob,
                nursery=nursery,
                settings=fetching,
            )
            yield LazyLayer(toc.spans, toc.extents, entry, fetcher, fetching.read_ahead, waited=waited)
            nursery.cancel_scope.cancel()


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.mark.parametrize("name", ENCODINGS)
async def test_any_range_reads_as_the_stream_says_and_comes_once(name, cache):
    blob = MemoryBlob(ENCODINGS[name](TAR))
    async with lazy(blob, cache, max_gap=0) as layer:
        rng = random.Random(name)
        for _ in range(40):
            start = rng.randrange(len(TAR))
            size = min(rng.choice([1, 4096, 100_000, 400_000]), len(TAR) - start)
            assert await layer.read(start, size) == TAR[start : start + size]
            assert layer.read_nowait(start, size) == TAR[start : start + size]
        await layer.read(0, len(TAR))
        asked = list(blob.ranges)
        assert await layer.read(0, len(TAR)) == TAR
        assert blob.ranges == asked
    assert sum(end - start for start, end in blob.ranges) < blob.size + 4096 * len(blob.ranges)


async def test_a_small_read_costs_one_request_of_one_span(cache):
    blob = MemoryBlob(gzip_layer(TAR))
    async with lazy(blob, cache) as layer:
        assert layer.read_nowait(200_000, 4096) is None
        await layer.read(200_000, 4096)
        span = next(span for span in layer.spans if span.uncompressed_end > 200_000)
        assert blob.ranges == [(span.compressed_start, span.compressed_end)]
        assert layer.statistics().misses == 1


async def test_whether_some_of_a_range_is_here(cache):
    blob = MemoryBlob(gzip_layer(TAR))
    async with lazy(blob, cache) as layer:
        span = layer.spans[1]
        start, end = span.uncompressed_start, span.uncompressed_end
        assert not layer.has_some(0, len(TAR))
        await layer.read(start, 1)
        assert layer.has_some(0, len(TAR))
        assert layer.has_some(start - 100, 101)
        assert layer.has_some(end - 1, 100_000)
        assert not layer.has_some(start - 100, 100)
        assert not layer.has_some(end, 100_000)
        assert not layer.has_some(len(TAR), 100)


async def test_layers_that_share_their_traffic_know_what_was_asked_for_each(cache):
    blobs = [MemoryBlob(gzip_layer(TAR)), MemoryBlob(gzip_layer(tar(file(b"f", bytes(9)))))]
    traffic = Traffic()
    async with lazy(blobs[0], cache, traffic=traffic) as one, lazy(blobs[1], cache, traffic=traffic) as two:
        await one.read(0, 100)
        for landing in two.bring([0], Purpose.BACKGROUND).values():
            await landing.wait()
        asked = [layer.statistics().fetched.asked for layer in (one, two)]
    for purpose, of_all in traffic.counts().items():
        assert sum(counts[purpose].bytes for counts in asked) == of_all.bytes
        assert sum(counts[purpose].requests for counts in asked) == of_all.requests
    assert asked[0][Purpose.BACKGROUND].requests == asked[1][Purpose.DEMAND].requests == 0
    assert asked[0][Purpose.DEMAND].bytes == blobs[0].ranges[0][1] - blobs[0].ranges[0][0]
    assert asked[1][Purpose.BACKGROUND].requests == 1


@pytest.mark.expect_log("no route")
async def test_reads_that_wait_in_vain_are_told_of_like_others(cache):
    blob, waits = MemoryBlob(gzip_layer(TAR)), []

    def note(wait: Wait) -> None:
        waits.append((wait.start, wait.size, wait.cause, wait.came))

    async with lazy(blob, cache, waited=note) as layer:
        gate = trio.Event()
        blob.before = gate.wait
        with trio.move_on_after(0.01):
            await layer.read(0, 100)
        gate.set()
        await layer.read(1000, 100)
        blob.before = fail
        with pytest.raises(Unreachable):
            await layer.read(len(TAR) - 5000, 100)
    assert waits[0] == (0, 100, Cause.NETWORK, False)
    assert [wait[::3] for wait in waits[1:]] == [(1000, True), (len(TAR) - 5000, False)]


async def fail() -> None:
    raise Unreachable("no route")


async def test_many_readers_of_one_span_share_one_request(cache):
    blob = MemoryBlob(gzip_layer(TAR))
    async with lazy(blob, cache) as layer, trio.open_nursery() as nursery:

        async def read(offset: int) -> None:
            assert await layer.read(offset, 64) == TAR[offset : offset + 64]

        for number in range(64):
            nursery.start_soon(read, 300_000 + 16 * number)
    assert len(blob.ranges) <= 2


async def test_two_processes_fetch_a_span_once(cache, tmp_path):
    """A second cache object has file descriptions, and so locks, of its own, as another process has."""
    blob = MemoryBlob(gzip_layer(TAR))
    built = build(blob.data)
    async with lazy(blob, cache, built) as one, lazy(blob, Cache(tmp_path / "cache"), built) as other:
        gate = trio.Event()
        blob.before = gate.wait
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.read, 100_000, 100)
            nursery.start_soon(other.read, 100_000, 100)
            await trio.testing.wait_all_tasks_blocked(0.005)
            gate.set()
        assert len(blob.ranges) == 1
        assert other.read_nowait(100_000, 100) == TAR[100_000:100_100]


@pytest.mark.expect_log("fetching from byte")
async def test_damaged_bytes_reach_no_reader_and_the_next_try_is_fresh(cache):
    good = gzip_layer(TAR)
    blob = MemoryBlob(good)
    built = build(good)
    bad = bytearray(good)
    for at in range(0, len(bad), 1000):
        bad[at] ^= 0xFF
    blob.data = bytes(bad)
    async with lazy(blob, cache, built) as layer:
        with pytest.raises(Exception) as caught:
            await layer.read(500_000, 100)
        assert type(caught.value).__module__ == "indexer.errors"
        assert layer.read_nowait(500_000, 100) is None
        blob.data = good
        assert await layer.read(500_000, 100) == TAR[500_000:500_100]


@pytest.mark.expect_log("streaming|fetching from byte")
async def test_a_frame_that_lies_is_refused(cache):
    good = zstd_frame(TAR)
    blob = MemoryBlob(zstd_frame(TAR[:700_000] + b"X" + TAR[700_001:]))
    built = build(good)
    blob.data = blob.data.ljust(len(good), b"\0")
    async with lazy(blob, cache, built) as layer:
        with pytest.raises(Exception) as caught:
            await layer.read(700_000, 100)
        assert isinstance(caught.value, DigestMismatch) or type(caught.value).__module__ == "indexer.errors"


async def test_readers_behind_the_frontier_of_a_frame_do_not_wait_for_its_end(cache):
    blob = MemoryBlob(zstd_frame(TAR))
    async with lazy(blob, cache, max_bytes=50_000) as layer:
        released = 0
        gate = trio.Event()

        async def first_three_pieces() -> None:
            nonlocal released
            released += 1
            if released > 3:
                await gate.wait()

        blob.before = first_three_pieces
        assert await layer.read(0, 100) == TAR[:100]
        with trio.move_on_after(0.05):
            await layer.read(len(TAR) - 100, 100)
            pytest.fail("nobody has sent the end yet")
        assert layer.read_nowait(0, 100) == TAR[:100]
        gate.set()
        assert await layer.read(len(TAR) - 100, 100) == TAR[-100:]
        starts = [start for start, _ in blob.ranges]
        assert starts == sorted(set(starts))


@pytest.mark.expect_log("no answer within")
async def test_a_fetch_that_stalls_ends_at_its_deadline(cache, autojump_clock):
    blob = MemoryBlob(gzip_layer(TAR))
    blob.before = trio.sleep_forever
    async with lazy(blob, cache, timeout_s=30) as layer:
        start = trio.current_time()
        with pytest.raises(Unreachable, match="30 s"):
            await layer.read(0, 100)
        assert trio.current_time() - start == pytest.approx(30, abs=0.1)


async def test_a_reader_that_gives_up_harms_no_other(cache):
    blob = MemoryBlob(gzip_layer(TAR))
    gate = trio.Event()
    blob.before = gate.wait
    async with lazy(blob, cache) as layer, trio.open_nursery() as nursery:
        nursery.start_soon(layer.read, 0, 100)
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(0):
            await layer.read(0, 100)
        gate.set()
    assert len(blob.ranges) == 1


async def test_reads_go_on_without_a_cache_that_takes_anything(cache, monkeypatch):
    blob = MemoryBlob(gzip_layer(TAR))
    async with lazy(blob, cache) as layer:
        monkeypatch.setattr(layer._entry, "put", lambda *_: False)
        for start, size in ((0, 100), (60_000, 300_000)):
            assert await layer.read(start, size) == TAR[start : start + size]
            assert layer.read_nowait(start, size) is None


async def test_sequential_readers_are_run_ahead_of(cache):
    blob = MemoryBlob(gzip_layer(TAR))
    settings = ReadAheadSettings(after_bytes=128 << 10, most_reach=1 << 20)
    async with lazy(blob, cache, read_ahead=settings) as layer:
        for start in range(0, len(TAR), 64 << 10):
            size = min(64 << 10, len(TAR) - start)
            assert await layer.read(start, size) == TAR[start : start + size]
            await trio.testing.wait_all_tasks_blocked(0.01)
        assert layer.statistics().misses < 8


async def test_what_a_reader_waits_for_and_what_it_wants_next_come_by_one_request(cache):
    blob = MemoryBlob(gzip_layer(TAR))
    settings = ReadAheadSettings(after_bytes=400_000)
    traffic = Traffic()
    async with lazy(blob, cache, read_ahead=settings, traffic=traffic) as layer:
        await layer.read(0, 300_000)
        assert len(blob.ranges) == 1
        await layer.read(300_000, 200_000)
        assert len(blob.ranges) == 2
        numbers = [layer.spans.find(end - 1) for end in (300_000, 500_000, 1_000_000)]
        here, wanted, ahead = (layer.spans[number].compressed_end for number in numbers)
        begins = layer.spans[numbers[0] + 1].compressed_start
        assert here < wanted < ahead
        assert blob.ranges[1] == (begins, ahead)
        assert await layer.read(500_000, 400_000) == TAR[500_000:900_000]
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert [start for start, _ in blob.ranges if start < ahead - 1] == [0, begins]
    counts = traffic.counts()
    assert counts[Purpose.DEMAND].requests == 2
    # Neighbours share the byte that one ends and the other begins in.
    assert counts[Purpose.DEMAND].bytes == pytest.approx(here + wanted - begins, abs=len(layer.spans))
    assert sum(count.bytes for count in counts.values()) == sum(end - start for start, end in blob.ranges)


async def test_sparse_members_read_as_their_expansion(cache):
    content = b"A" * 512 + bytes(1 << 20) + b"B" * 700
    pieces = [(0, b"A" * 512), (512 + (1 << 20), b"B" * 700)]
    blob = MemoryBlob(gzip_layer(tar(file(b"x", b"x"), gnu_sparse(b"s", len(content), pieces))))
    built = build(blob.data)
    member = built.toc.members[-1]
    assert member.size == len(content)
    async with lazy(blob, cache, built) as layer:
        for start, size in ((0, 600), (500, 2 << 10), ((1 << 20), 1212), (0, len(content))):
            wanted = content[start : start + size]
            assert await layer.read(member.data_start + start, len(wanted)) == wanted
        padded = -(-len(content) // 512) * 512
        assert (await layer.read(member.data_start, padded))[len(content) :] == bytes(padded - len(content))


async def test_pieces_that_lie_together_in_the_stream_are_read_at_once(cache):
    pieces = [(3 * number, b"%d" % (number % 10)) for number in range(5000)]
    blob = MemoryBlob(gzip_layer(tar(gnu_sparse(b"s", 15_000, pieces))))
    built = build(blob.data)
    waits: list[Wait] = []
    async with lazy(blob, cache, built, waited=waits.append) as layer:
        content = await layer.read(built.toc.members[-1].data_start, 15_000)
        assert content == b"".join(piece + bytes(2) for _, piece in pieces)
    assert [wait.size for wait in waits] == [5000]


def test_runs_of_the_stream_end_where_the_next_piece_lies_elsewhere():
    pieces = [Piece(None, 5), Piece(100, 2), Piece(None, 1), Piece(102, 3), Piece(100, 1), Piece(None, 4)]
    runs = list(tail_runs(pieces))
    assert runs == [Run(100, 105, [(5, 2), (8, 3)]), Run(100, 101, [(11, 1)])]
    output = bytearray(b"." * 12)
    for run in runs:
        run.lay(b"abcde"[: run.end - run.start], output)
    assert output == b".....ab.cdea"


class CountedExtents(Sequence[Extent]):
    """The tail shows every second byte of itself; counts how often one of them was looked at."""

    looks = 0

    def __len__(self):
        return 100_000

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        self.looks += 1
        return Extent(2 * index, index, 1)


def test_a_read_of_the_tail_looks_at_few_extents():
    extents = CountedExtents()
    for number in (0, 50_000, 99_998):
        found = list(tail_pieces(extents, 2 * number, 2 * number + 4))
        assert found == [Piece(number, 1), Piece(None, 1), Piece(number + 1, 1), Piece(None, 1)]
    assert extents.looks < 100


def test_neighbours_are_fetched_together_and_strangers_apart():
    spans = list(build(gzip_layer(TAR)).toc.spans)
    together = plan_fetches(spans, max_bytes=1 << 30, max_gap=0)
    assert len(together) == 1
    apart = plan_fetches(spans[::2], max_bytes=1 << 30, max_gap=0)
    assert len(apart) == len(spans[::2])
    joined = plan_fetches(spans[::2], max_bytes=1 << 30, max_gap=1 << 30)
    assert len(joined) == 1
    bounded = plan_fetches(spans, max_bytes=1, max_gap=0)
    assert [fetch.spans for fetch in bounded] == [(span,) for span in spans]


@pytest.mark.timeout(20)
def test_many_spans_of_one_entry_are_planned_in_one_go():
    (span,) = list(build(gzip_layer(tar(file(b"f", b"x")))).toc.spans)
    spans = [span._replace(number=number, skip=number) for number in range(200_000)]
    (fetch,) = plan_fetches(spans, max_bytes=1, max_gap=0)
    assert list(fetch.spans) == spans
