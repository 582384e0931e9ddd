"""One budget of bytes for all requests: kept over any stretch of time, readers first, used up."""

import random

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from indexer.toc import Toc
from lazyfs.cache.cache import Cache
from lazyfs.cache.layer_entry import LayerEntry
from lazyfs.image.reading.completion import complete
from lazyfs.image.reading.fetcher import FetchSettings
from lazyfs.image.reading.landing import Landings
from lazyfs.image.reading.traffic import Purpose, Ticket, Traffic
from lazyfs.image.reading.whole_stream import WholeStream
from lazyfs.oci.image_name import parse_image
from lazyfs.source.open import open_source
from tests.support.images import build_image, write_layout
from tests.support.layers import build, digest_of, gzip_layer
from tests.support.registry import Registry
from tests.support.registry_client import SETTINGS, layer_link
from tests.support.tars import file, tar
from tests.test_t3_layer import MemoryBlob, lazy
from tests.test_t3_streams import RangelessBlob

RATE = 100_000
MOST = 50_000  # of one request

Paid = list[tuple[float, Purpose, int]]

REQUESTS = st.lists(
    st.tuples(st.floats(0, 20), st.sampled_from(Purpose), st.integers(1, MOST)), min_size=1, max_size=40
)


async def pay_all(requests: list[tuple[float, Purpose, int]]) -> Paid:
    """When each was allowed to ask for its bytes."""
    traffic = Traffic(rate=RATE)
    paid: Paid = []

    async def pay(at: float, purpose: Purpose, size: int) -> None:
        await trio.sleep(at)
        await traffic.pay(Ticket(purpose), size)
        paid.append((trio.current_time(), purpose, size))

    async with trio.open_nursery() as nursery:
        for request in requests:
            nursery.start_soon(pay, *request)
    return paid


@settings(max_examples=60)
@given(REQUESTS)
def test_over_any_stretch_of_time_no_more_is_asked_for_and_no_less_while_somebody_waits(requests):
    paid = trio.run(pay_all, requests, clock=MockClock(autojump_threshold=0))
    assert len(paid) == len(requests)
    for first in range(len(paid)):
        total = 0
        for at, _, size in paid[first:]:
            stretch_s = at - paid[first][0]
            # What was saved, a reader's debt, and the last one's bytes, which nobody else had asked for.
            assert total <= RATE * (stretch_s + 0.25 + 1) + MOST + 1
            total += size
    last_asked = max(at for at, _, _ in requests)
    assert paid[-1][0] <= last_asked + sum(size for _, _, size in requests) / RATE + 0.1


async def test_who_is_more_urgent_goes_first_however_late_he_comes(autojump_clock):
    traffic = Traffic(rate=RATE)
    order: list[Purpose] = []

    async def pay(purpose: Purpose) -> None:
        await traffic.pay(Ticket(purpose), MOST)
        order.append(purpose)

    await traffic.pay(Ticket(Purpose.DEMAND), 2 * RATE)  # more than readers may owe
    async with trio.open_nursery() as nursery:
        for purpose in reversed(Purpose):
            for _ in range(2):
                nursery.start_soon(pay, purpose)
            await wait_all_tasks_blocked()
    assert order == [purpose for purpose in Purpose for _ in range(2)]


async def test_readers_go_into_debt_beside_others_and_what_becomes_theirs_does_too(autojump_clock):
    traffic = Traffic(rate=RATE)
    behind = Ticket(Purpose.BACKGROUND)
    await traffic.pay(behind, RATE // 2)
    began = trio.current_time()
    await traffic.pay(Ticket(Purpose.DEMAND), MOST)
    assert trio.current_time() == began
    async with trio.open_nursery() as nursery:
        nursery.start_soon(traffic.pay, behind, MOST)
        await trio.sleep(0.1)
        assert nursery.child_tasks
        traffic.promote(behind)
        await wait_all_tasks_blocked()
        assert not nursery.child_tasks


async def test_connections_are_one_budget_too_and_a_quarter_is_for_readers(autojump_clock):
    traffic = Traffic(connections=4)
    running: list[Purpose] = []

    async def run(purpose: Purpose) -> None:
        async with traffic.turn(Ticket(purpose)):
            running.append(purpose)
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        for purpose in (Purpose.AHEAD, Purpose.PACK, Purpose.DEMAND):
            for _ in range(5):
                nursery.start_soon(run, purpose)
            await wait_all_tasks_blocked()
        assert running == [Purpose.AHEAD] * 3 + [Purpose.DEMAND]
        await trio.sleep(1.5)
        assert running[4:8] == [Purpose.DEMAND] * 4


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(tmp_path / "cache")


DATA = tar(file(b"noise", random.Random(3).randbytes(3 << 20)))


def paced(rate: int) -> FetchSettings:
    return FetchSettings(traffic=Traffic(rate=rate)).paced(rate)


class InlineBlob(MemoryBlob):
    """Needs no threads, for whose work a clock that jumps would not wait."""

    async def fetch(self, start, end, consume):
        self.ranges.append((start, end))
        await trio.sleep(0.01)
        return consume(memoryview(self.data)[start:end])

    async def stream(self, start, end, consume):
        await self.fetch(start, end, consume)


async def test_a_layer_comes_no_faster_than_it_may_whoever_asks(cache, autojump_clock):
    """Read-ahead and a reader at once, by trio's clock."""
    data = gzip_layer(DATA)
    rate = len(data) // 30
    chosen = paced(rate)
    blob = InlineBlob(data)
    values = {name: getattr(chosen, name) for name in ("traffic", "max_bytes", "max_streamed")}
    began = trio.current_time()
    async with lazy(blob, cache, build(data), **values) as layer:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(complete, layer, Purpose.AHEAD)
            for start in range(0, len(DATA) - 4096, 300_000):
                assert await layer.read(start, 4096) == DATA[start : start + 4096]
        assert layer.entry.complete
    assert 30 - 0.25 - 1 - 2 <= trio.current_time() - began <= 33
    assert sum(end - start for start, end in blob.ranges) <= blob.size * 1.05


def filled(cache: Cache, toc: Toc) -> LayerEntry:
    """Where a layer goes."""
    header = toc.header
    return cache.layer(header.layer_digest, digest_of(b""), header.device_size, toc.spans.leaves)


async def test_a_layer_that_is_streamed_whole_pays_for_each_piece_as_it_comes(cache):
    blob = RangelessBlob(gzip_layer(DATA))
    toc = build(blob.data).toc
    paid: list[int] = []

    async def pay(size: int) -> None:
        paid.append(size)

    with filled(cache, toc) as entry:
        whole = WholeStream(toc.spans, entry, blob, Landings(), lambda *_: None, pay)
        whole.wanted.append(toc.spans[0])
        await whole.run()
        assert entry.complete
    assert sum(paid) == blob.size
    assert max(paid) <= 30_000


@pytest.mark.parametrize("where", ["registry", "layout"])
async def test_a_stream_that_may_not_go_on_yet_ends_at_once_when_it_is_cancelled(cache, tmp_path, where):
    """Its thread waits meanwhile, and is waited for."""
    image = build_image([DATA])
    (layer,) = image.layers
    toc = build(layer).toc
    asked = trio.Event()

    async def pay(_: int) -> None:
        asked.set()
        await trio.sleep(10)

    with Registry() as registry, filled(cache, toc) as entry:
        registry.push("app", image, tag="1")
        layout = write_layout(tmp_path / "layout", {"1": image})
        name = f"{registry.host}/app:1" if where == "registry" else f"oci:{layout}:1"
        async with open_source(parse_image(name), SETTINGS) as source:
            blob = source.blob(layer_link(layer))
            whole = WholeStream(toc.spans, entry, blob, Landings(), lambda *_: None, pay)
            whole.wanted.append(toc.spans[0])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(whole.run)
                await asked.wait()
                began = trio.current_time()
                nursery.cancel_scope.cancel()
            assert trio.current_time() - began < 10
