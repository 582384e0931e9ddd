"""Requests take turns: readers first; what is asked for in advance waits, until somebody wants it."""

import random
from collections.abc import Callable, Collection, Iterator

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from indexer.boot_pack import PackLayer
from indexer.member_table import FileRanges
from indexer.toc import Span
from lazyfs.cache.cache import Cache
from lazyfs.errors import Unreachable
from lazyfs.image.boot.pace import Pace
from lazyfs.image.reading import plan
from lazyfs.image.reading.beside import Beside
from lazyfs.image.reading.completion import complete, complete_when_much_read
from lazyfs.image.reading.fetcher import FetchSettings
from lazyfs.image.reading.layer import LazyLayer
from lazyfs.image.reading.plan import beside
from lazyfs.image.reading.traffic import SLOWEST, Cause, Purpose, SlowRead, Ticket, Traffic, TrafficCount
from lazyfs.source.line import Line
from tests.support.layers import build, gzip_layer, zstd_frame
from tests.support.tars import file, tar
from tests.test_t3_layer import QUIET, TAR, MemoryBlob, lazy


class Runner:
    """Requests that run until they are told to end."""

    def __init__(self, traffic: Traffic, nursery: trio.Nursery) -> None:
        self.traffic = traffic
        self.nursery = nursery
        self.running: list[str] = []

    def start(self, name: str, purpose: Purpose) -> tuple[Ticket, trio.Event]:
        ticket, end = Ticket(purpose), trio.Event()

        async def run() -> None:
            async with self.traffic.turn(ticket):
                self.running.append(name)
                await end.wait()
                self.running.remove(name)

        self.nursery.start_soon(run)
        return ticket, end


async def test_readers_never_wait_for_others(autojump_clock):
    async with trio.open_nursery() as nursery:
        runner = Runner(Traffic(), nursery)
        ends = [runner.start(f"ahead {n}", Purpose.AHEAD)[1] for n in range(40)]
        await wait_all_tasks_blocked()
        assert len(runner.running) == 12
        ends += [runner.start(f"demand {n}", Purpose.DEMAND)[1] for n in range(20)]
        await wait_all_tasks_blocked()
        assert len(runner.running) == 32
        for end in ends:
            end.set()


async def test_what_waits_for_its_turn_goes_at_once_when_a_reader_wants_it(autojump_clock):
    async with trio.open_nursery() as nursery:
        runner = Runner(traffic := Traffic(), nursery)
        ends = [runner.start(f"demand {n}", Purpose.DEMAND)[1] for n in range(4)]
        await wait_all_tasks_blocked()
        ticket, end = runner.start("pack", Purpose.PACK)
        await wait_all_tasks_blocked()
        assert "pack" not in runner.running
        traffic.promote(ticket)
        await wait_all_tasks_blocked()
        assert "pack" in runner.running
        for each in [*ends, end]:
            each.set()


@pytest.mark.parametrize("gives_up", [True, False])
async def test_what_waited_for_a_waiting_reader_goes_on_when_that_waits_no_more(gives_up, autojump_clock):
    async with trio.open_nursery() as nursery:
        runner = Runner(Traffic(connections=2), nursery)
        ends = [runner.start(name, Purpose.DEMAND)[1] for name in ("one", "two")]
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as others:
            Runner(runner.traffic, others).start("three", Purpose.DEMAND)
            await wait_all_tasks_blocked()
            ends.append(runner.start("ahead", Purpose.AHEAD)[1])
            await wait_all_tasks_blocked()
            assert set(runner.running) == {"one", "two"}
            if gives_up:
                others.cancel_scope.cancel()
            else:
                ends[0].set()
            with trio.CancelScope(shield=True):
                await wait_all_tasks_blocked()
            assert "ahead" in runner.running
            others.cancel_scope.cancel()
        for end in ends:
            end.set()


async def test_packs_and_read_ahead_go_on_when_readers_become_fewer(autojump_clock):
    async with trio.open_nursery() as nursery:
        runner = Runner(Traffic(), nursery)
        ends = [runner.start(f"demand {n}", Purpose.DEMAND)[1] for n in range(4)]
        await wait_all_tasks_blocked()
        _, end = runner.start("ahead", Purpose.AHEAD)
        await wait_all_tasks_blocked()
        assert "ahead" not in runner.running
        ends[0].set()
        await wait_all_tasks_blocked()
        assert "ahead" in runner.running
        for each in [*ends, end]:
            each.set()


@pytest.mark.parametrize("patient", [True, False])
async def test_the_background_waits_until_nobody_wants_anything(autojump_clock, patient):
    async with trio.open_nursery() as nursery:
        runner = Runner(Traffic(patient=patient), nursery)
        _, demand = runner.start("demand", Purpose.DEMAND)
        await wait_all_tasks_blocked()
        _, end = runner.start("behind", Purpose.BACKGROUND)
        await trio.sleep(5)
        assert ("behind" in runner.running) != patient
        demand.set()
        await trio.sleep(0.1)
        assert ("behind" in runner.running) != patient
        await trio.sleep(2)
        assert "behind" in runner.running
        end.set()


async def test_the_background_keeps_to_its_rate(autojump_clock):
    traffic = Traffic(1000)
    began = trio.current_time()
    for _ in range(5):
        async with traffic.turn(Ticket(Purpose.BACKGROUND)):
            traffic.count(Purpose.BACKGROUND, 4000)
    assert 16 <= trio.current_time() - began < 20
    assert traffic.counts()[Purpose.BACKGROUND] == TrafficCount(5, 20_000)


def test_the_slowest_reads_are_remembered_and_no_more():
    traffic = Traffic()
    layer = PackLayer("sha256:1", "sha256:2")
    waits = random.Random(4).sample(range(1000), 200)
    for wait in waits:
        traffic.waited(SlowRead(wait / 1000, 0.0, layer, 0, 1, Cause.NETWORK, came=True))
    assert [round(read.wait_s * 1000) for read in traffic.slowest()] == sorted(waits, reverse=True)[:SLOWEST]


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(tmp_path / "cache")


async def test_a_layer_is_completed_front_to_back_each_byte_once(cache):
    blob = MemoryBlob(gzip_layer(TAR))
    traffic = Traffic()
    async with lazy(blob, cache, traffic=traffic, max_gap=0, max_streamed=64 << 10) as layer:
        await layer.read(300_000, 10)
        await complete(layer, Purpose.BACKGROUND)
        assert layer.entry.complete
        assert sum(end - start for start, end in blob.ranges) <= blob.size + 16 * len(blob.ranges)
        asked = len(blob.ranges)
        await complete(layer, Purpose.BACKGROUND)
        assert len(blob.ranges) == asked
    counts = traffic.counts()
    assert counts[Purpose.DEMAND].requests == 1
    assert counts[Purpose.BACKGROUND].requests == asked - 1


@pytest.mark.expect_log("fetching from byte")
async def test_what_cannot_be_had_ends_the_completion(cache, autojump_clock):
    blob = MemoryBlob(gzip_layer(TAR))
    async with lazy(blob, cache, timeout_s=5) as layer:
        blob.before = trio.sleep_forever
        await complete(layer, Purpose.AHEAD)
        assert not layer.entry.complete


async def test_a_frame_that_is_streamed_in_the_background_waits_and_counts_as_such(cache, autojump_clock):
    blob = MemoryBlob(zstd_frame(TAR))
    traffic = Traffic(background_rate := 1_000_000)
    async with lazy(blob, cache, traffic=traffic, max_bytes=100_000, timeout_s=5) as layer:
        began = trio.current_time()
        await complete(layer, Purpose.BACKGROUND)
        assert layer.entry.complete
        assert trio.current_time() - began >= (blob.size - 100_000) / background_rate
    counts = traffic.counts()
    assert counts[Purpose.DEMAND].requests == 0
    assert counts[Purpose.BACKGROUND] == TrafficCount(len(blob.ranges), blob.size)


async def test_a_reader_makes_the_frame_it_waits_for_go_first(cache):
    blob = MemoryBlob(zstd_frame(TAR))
    traffic = Traffic(1000)  # bytes a second: the next piece would come in 100 s
    async with (
        lazy(blob, cache, traffic=traffic, max_bytes=100_000) as layer,
        trio.open_nursery() as nursery,
    ):
        sent = trio.Event()

        async def tell() -> None:
            sent.set()

        blob.before = tell
        nursery.start_soon(complete, layer, Purpose.BACKGROUND)
        await sent.wait()
        with trio.fail_after(30):
            assert await layer.read(900_000, 10) == TAR[900_000:900_010]


@pytest.mark.expect_log("fetching from byte")
async def test_a_frame_that_broke_off_is_not_taken_for_complete(cache, autojump_clock):
    blob = MemoryBlob(zstd_frame(TAR))
    pieces = 0

    async def break_off_once() -> None:
        nonlocal pieces
        pieces += 1
        if pieces == 8:
            raise Unreachable("it broke off")

    blob.before = break_off_once
    async with lazy(blob, cache, max_bytes=50_000) as layer:
        await complete(layer, Purpose.BACKGROUND)
        assert layer.entry.complete


async def test_a_reader_makes_its_background_request_go_first(cache, autojump_clock):
    blob = MemoryBlob(gzip_layer(TAR))
    traffic = Traffic()
    async with lazy(blob, cache, traffic=traffic) as layer, trio.open_nursery() as nursery:
        gate = trio.Event()
        blob.before = gate.wait
        nursery.start_soon(layer.read, 900_000, 10)
        await wait_all_tasks_blocked()
        nursery.start_soon(complete, layer, Purpose.BACKGROUND)
        await wait_all_tasks_blocked()
        assert len(blob.ranges) == 1
        nursery.start_soon(layer.read, 100, 10)
        await wait_all_tasks_blocked()
        assert len(blob.ranges) == 2
        gate.set()


async def test_nothing_is_streamed_before_much_was_read(cache):
    blob = MemoryBlob(gzip_layer(TAR))
    async with lazy(blob, cache) as layer, trio.open_nursery() as nursery:
        nursery.start_soon(complete_when_much_read, layer)
        for start in range(0, len(TAR), 40_000):
            await layer.read(start, 10)
        assert not layer.much_read.is_set()  # it is small
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("round_trip_s", "transfer_s"),
    [(0.05, 0.1), (0.001, 0.021)],  # then the line carries 70,000 bytes meanwhile
    ids=["far", "near"],
)
async def test_what_lies_beside_comes_with_a_miss(cache, round_trip_s, transfer_s):
    blob = MemoryBlob(gzip_layer(TAR))
    line = Line()
    for _ in range(3):
        line.answered(round_trip_s)
    async with lazy(blob, cache, max_gap=0) as layer:
        fetcher = layer._fetcher
        beside = Beside(layer.spans, fetcher, line, FileRanges)
        far = LazyLayer(layer.spans, layer.extents, layer.entry, fetcher, QUIET, beside)
        await far.read(0, 10)
        assert len(blob.ranges) == 1  # nothing was known of the line
        fetcher._transfers.clear()
        fetcher._transfers.append((70_000, transfer_s))
        await far.read(600_000, 10)
        while fetcher.bytes_under_way:
            await far.landed.wait()
        assert len(blob.ranges) > 2
        came = sum(end - start for start, end in blob.ranges[2:])
        number = layer.spans.find(600_000)
        assert 0 < came <= 70_000 + 10
        assert layer.entry.has(*layer.spans.leaf_range(*_of(layer.spans[number + 1])))


@pytest.mark.expect_log("knows no ranges")
async def test_what_is_refused_after_it_has_passed_by_is_not_streamed_again(cache):
    blob = MemoryBlob(gzip_layer(TAR))
    async with lazy(blob, cache) as layer:
        await layer.read(0, 10)
        fetcher = layer._fetcher
        fetcher._stream_whole([layer.spans[0]])
        assert fetcher._whole is not None
        assert not fetcher._whole.runs


def _of(span: Span) -> tuple[int, int]:
    return span.uncompressed_start, span.uncompressed_end


async def test_of_what_much_is_read_the_rest_comes_too(cache):
    """A third of a layer, and more than a little."""
    data = tar(file(b"large", random.Random(8).randbytes(18 << 20)))
    blob = MemoryBlob(data)
    traffic = Traffic()
    async with lazy(blob, cache, traffic=traffic) as layer, trio.open_nursery() as nursery:
        nursery.start_soon(complete_when_much_read, layer)
        for span in list(layer.spans)[::2]:
            if not layer.much_read.is_set():
                await layer.read(span.uncompressed_start, 10)
        assert layer.much_read.is_set()
        with trio.fail_after(30):
            while not layer.entry.complete:
                await layer.landed.wait()
    counts = traffic.counts()
    assert counts[Purpose.DEMAND].bytes >= 8 << 20
    assert counts[Purpose.DEMAND].bytes + counts[Purpose.AHEAD].bytes <= len(data) + (1 << 20)


# Deciding


SPANS = build(gzip_layer(TAR)).toc.spans


def left_but(here: Collection[int]) -> Callable[[range], Iterator[int]]:
    return lambda numbers: (number for number in numbers if number not in here)


@given(st.data())
def test_what_lies_beside_fits_and_is_new(data):
    wanted = [data.draw(st.integers(0, len(SPANS) - 1))]
    here = data.draw(st.sets(st.integers(0, len(SPANS) - 1)))
    room = data.draw(st.integers(0, 400_000))
    found = beside(SPANS, wanted, room, left_but(here))
    assert found == sorted(set(found) - here - set(wanted))
    assert sum(SPANS[n].compressed_end - SPANS[n].compressed_start for n in found) <= room
    everything = beside(SPANS, wanted, 1 << 40, left_but(here))
    assert set(everything) == set(range(len(SPANS))) - here - set(wanted)


@given(st.data())
def test_the_rest_of_the_same_file_goes_first_and_may_take_more(data):
    first = data.draw(st.integers(0, len(SPANS) - 1))
    file = range(first, data.draw(st.integers(first + 1, len(SPANS))))
    wanted = data.draw(st.sampled_from(file))
    here = data.draw(st.sets(st.integers(0, len(SPANS) - 1)))
    room = data.draw(st.integers(0, 400_000))
    found = beside(SPANS, [wanted], room, left_but(here), file)
    sizes = {n: SPANS[n].compressed_end - SPANS[n].compressed_start for n in range(len(SPANS))}
    rest = {n for n in file if n > wanted} - here
    rest = rest or {n for n in file if n < wanted} - here
    assert found == sorted(set(found) - here - {wanted})
    assert sum(sizes[n] for n in found if n in file) <= 3 * room
    if not rest <= set(found):
        assert set(found) <= rest
        assert sum(sizes[n] for n in rest) > 3 * room
    if not set(found) <= set(file):
        assert sum(sizes[n] for n in found) <= room


def test_the_rest_of_a_large_file_may_take_no_more(monkeypatch):
    file = range(2, len(SPANS))
    sizes = [span.compressed_end - span.compressed_start for span in SPANS]
    room = sum(sizes[3:6])
    assert beside(SPANS, [2], room, left_but(()), file)[:4] == [3, 4, 5, 6]
    monkeypatch.setattr(plan, "_SMALL_FILE", SPANS[-1].uncompressed_end - SPANS[2].uncompressed_start - 1)
    assert beside(SPANS, [2], room, left_but(()), file) == [3, 4, 5]


def paced(*arrivals: tuple[float, int]) -> Pace:
    pace = Pace(0.0)
    for now, size in arrivals:
        pace.arrived(size, now)
    return pace


@pytest.mark.parametrize(
    ("pace", "to_come", "apart", "now", "worth"),
    [
        (paced, 1 << 20, 100_000, 0.2, True),  # it has only been begun
        (paced, 0, 100_000, 1.5, False),  # nothing ever came
        (lambda: paced((0.1, 100_000), (0.2, 100_000)), 50_000, 100_000, 0.21, True),
        (lambda: paced((0.1, 100_000), (0.2, 100_000)), 5_000_000, 100_000, 0.21, False),  # far behind
        (lambda: paced((0.1, 100_000), (0.2, 100_000)), 10, 100_000, 2.0, False),  # stalled
        (
            lambda: paced((0.1, 100_000), (0.2, 100_000)),
            700_000,
            1_000_000,
            0.21,
            True,
        ),  # so is the other way
    ],
)
def test_readers_wait_for_a_stream_that_is_no_slower(
    pace: Callable[[], Pace], to_come: int, apart: int, now: float, worth: bool
):
    assert pace().is_worth_waiting(to_come, apart, now) == worth


def test_settings_of_one_mount_share_their_turns():
    assert FetchSettings().traffic is not FetchSettings().traffic
    assert QUIET.most_reach == 0
