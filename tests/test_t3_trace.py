"""Traces: every first touch once, in order, whoever reads how; strangers' traces are refused politely."""

import json
import random
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.boot_pack import PackLayer
from indexer.errors import FormatError, IndexerError, LimitExceeded, Unsupported
from indexer.toc import Extent
from lazyfs.cache.cache import Cache
from lazyfs.image.boot.recording import KEPT, kept_traces, recorded, save_trace
from lazyfs.image.boot.trace import MAX_TOUCHES, Touch, Trace, TracedLayer, Tracer, decode_trace
from lazyfs.image.reading.layer import Watch

NAMES = PackLayer("sha256:" + "1" * 64, "sha256:" + "2" * 64)
MANIFEST = "sha256:" + "3" * 64
SIZE = 64 * 512 + 100


class Clock:
    """Counts seconds by itself."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


def tracer(*sizes: int, extents: tuple[Extent, ...] = ()) -> Tracer:
    layers = [
        TracedLayer(NAMES._replace(toc_digest=f"sha256:{n:064x}"), size, extents)
        for n, size in enumerate(sizes)
    ]
    return Tracer("image", MANIFEST, layers, precise=True, clock=Clock())


def blocks(trace: Trace) -> list[tuple[int, int]]:
    """The blocks that a trace tells of, in its order."""
    return [
        (touch.layer, block)
        for touch in trace.touches
        for block in range(touch.start // 512, (touch.end - 1) // 512 + 1)
    ]


READS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 63), st.integers(1, 20)), max_size=40)


@settings(max_examples=100)
@given(READS)
def test_each_block_is_told_when_it_is_read_first(reads):
    found = tracer(SIZE, SIZE)
    expected: list[tuple[int, int]] = []
    for layer, first, count in reads:
        end = min(first + count, 64)
        found.note(layer, first * 512, end * 512)
        expected += [(layer, n) for n in range(first, end) if (layer, n) not in expected]
    trace = found.trace()
    assert list(dict.fromkeys(blocks(trace))) == expected
    assert found.size == trace.size
    times = [touch.at_us for touch in trace.touches]
    assert times == sorted(times)


def test_what_is_read_in_a_row_is_one_piece():
    found = tracer(SIZE)
    for at in range(0, 8192, 512):
        found.note(0, at, at + 512)
    assert found.trace().touches == (Touch(0, 0, 8192, 1000),)


def test_reads_of_the_tail_are_told_as_bytes_of_the_stream():
    tail = -(-SIZE // 512) * 512
    found = tracer(SIZE, extents=(Extent(tail + 4096, 1024, 512),))
    found.note(0, SIZE - 100, tail + 8192)
    assert found.trace().touches == (Touch(0, SIZE - 100, SIZE, 1000), Touch(0, 1024, 1536, 2000))


def test_extents_of_nothing_are_not_touched():
    tail = -(-SIZE // 512) * 512
    found = tracer(SIZE, extents=(Extent(tail + 100, 5, 0), Extent(tail + 512, 1024, 512)))
    found.note(0, tail, tail + 4096)
    trace = found.trace()
    assert trace.touches == (Touch(0, 1024, 1536, 1000),)
    assert decode_trace(trace.encode()) == trace


def test_a_trace_is_bounded():
    found = tracer((2 * MAX_TOUCHES + 3) * 512)
    for at in range(0, (2 * MAX_TOUCHES + 2) * 512, 1024):
        found.note(0, at, at + 512)
    assert len(found) == MAX_TOUCHES


def test_a_layer_that_says_it_is_huge_costs_no_memory():
    found = tracer(1 << 52)
    found.note(0, (1 << 52) - 512, 1 << 52)
    assert found.trace().touches == (Touch(0, (1 << 52) - 512, 1 << 52, 1000),)


def test_a_trace_survives_its_document():
    found = tracer(SIZE, SIZE)
    found.note(1, 512, 4096)
    found.note(0, 0, 100)
    trace = found.trace("python3 -c 'print(1)'")
    assert decode_trace(trace.encode()) == trace
    assert trace.size == 3684


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"version": 2}, Unsupported),
        ({"manifest": "x"}, FormatError),
        ({"layers": [{"digest": "sha256:1"}]}, FormatError),
        ({"layers": 7}, FormatError),
        ({"touches": [[0, 5, 5, 1]]}, FormatError),
        ({"touches": [[1, 0, 5, 1]]}, FormatError),
        ({"touches": [[0, 0, 5]]}, FormatError),
        ({"touches": [[0, -1, 5, 1]]}, FormatError),
        ({"touches": [[0, 0, 1, 1]] * (MAX_TOUCHES + 1)}, LimitExceeded),
        ({"began": "x"}, FormatError),
    ],
)
def test_what_is_no_trace_is_refused(change: dict[str, Any], error: type[IndexerError]):
    values = tracer(SIZE).trace().as_json() | change
    with pytest.raises(error):
        decode_trace(json.dumps(values).encode())


@settings(max_examples=60)
@given(st.binary(max_size=80))
def test_noise_is_no_trace(noise):
    with pytest.raises(FormatError):
        decode_trace(noise)


def test_the_newest_traces_of_an_image_are_kept(tmp_path: Path):
    cache = Cache(tmp_path / "cache")
    rng = random.Random(1)
    for number in range(KEPT + 3):
        found = tracer(SIZE)
        found.note(0, 512 * rng.randrange(8), SIZE)
        trace = found.trace(str(number))
        save_trace(
            cache, Trace(**{name: getattr(trace, name) for name in trace.__slots__} | {"began": number})
        )
    kept = [trace.command for trace in kept_traces(cache, MANIFEST)]
    assert sorted(map(int, kept)) == list(range(3, KEPT + 3))
    cache.traces.save(MANIFEST, "broken", b"{", KEPT)
    assert len(kept_traces(cache, MANIFEST)) == KEPT - 1


class Layer:
    """Tells whoever watches it of reads."""

    size = SIZE
    extents = ()
    watchers: list[Watch]

    def __init__(self) -> None:
        self.watchers = []

    def watch(self, watcher: Watch) -> None:
        self.watchers.append(watcher)

    def unwatch(self, watcher: Watch) -> None:
        self.watchers.remove(watcher)

    def read(self, start: int, end: int) -> None:
        for watcher in self.watchers:
            watcher(start, end)


async def test_what_was_read_in_a_row_since_a_trace_was_kept_is_kept_too(tmp_path: Path, autojump_clock):
    cache, layer = Cache(tmp_path / "cache"), Layer()
    resolved = SimpleNamespace(name="image", descriptor=SimpleNamespace(digest=MANIFEST))
    async with recorded(resolved, {NAMES: layer}, cache, precise=True):
        layer.read(0, 512)
        while not kept_traces(cache, MANIFEST):  # noqa: ASYNC110  # what a thread writes, nobody tells
            await trio.sleep(1)
        assert [trace.size for trace in kept_traces(cache, MANIFEST)] == [512]
        layer.read(512, 8192)
    assert [trace.size for trace in kept_traces(cache, MANIFEST)] == [8192]


async def test_readers_do_not_wait_while_a_trace_is_made_of_many_touches(
    tmp_path: Path, autojump_clock, monkeypatch
):
    cache, layer, made_by = Cache(tmp_path / "cache"), Layer(), set()
    make = Tracer.trace

    def noting(tracer: Tracer, program: str) -> Trace:
        made_by.add(threading.current_thread())
        return make(tracer, program)

    monkeypatch.setattr(Tracer, "trace", noting)
    resolved = SimpleNamespace(name="image", descriptor=SimpleNamespace(digest=MANIFEST))
    async with recorded(resolved, {NAMES: layer}, cache, precise=True):
        layer.read(0, 512)
        await trio.sleep(31)
    assert made_by
    assert threading.current_thread() not in made_by


async def test_what_is_kept_last_is_the_newest_however_long_it_takes_to_keep_what_was_before(
    tmp_path: Path, autojump_clock, monkeypatch
):
    cache, layer = Cache(tmp_path / "cache"), Layer()
    begun, go = trio.Event(), threading.Event()

    def slow_at_first(cache: Cache, trace: Trace) -> None:
        if not begun.is_set():
            trio.from_thread.run_sync(begun.set)
            assert go.wait(20)
        save_trace(cache, trace)

    monkeypatch.setattr("lazyfs.image.boot.recording.save_trace", slow_at_first)
    resolved = SimpleNamespace(name="image", descriptor=SimpleNamespace(digest=MANIFEST))

    async def mount() -> None:
        async with recorded(resolved, {NAMES: layer}, cache, precise=True):
            layer.read(0, 512)
            await begun.wait()
            layer.read(512, 8192)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(mount)
        await begun.wait()
        await trio.sleep(1)
        go.set()
    assert [trace.size for trace in kept_traces(cache, MANIFEST)] == [8192]
