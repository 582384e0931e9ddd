"""Windows of a published index: which requests they cost, and that a wrong one does no lasting harm."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import NamedTuple

import pytest
import trio

from indexer.errors import DigestMismatch, IndexerError, LimitExceeded
from indexer.toc import Span
from indexer.toc_codec import decompress_window
from lazyfs.errors import Unreachable
from lazyfs.image.indexes.windows import BLOCK_SIZE, ReadWindow, RemoteWindows, WindowFetcher
from tests.support.layers import build, digest_of, gzip_layer
from tests.support.spans import read_span
from tests.support.tars import file, tar
from tests.test_t3_layer import MemoryBlob

_RANDOM = random.Random(11)
_WORDS = [_RANDOM.randbytes(5).hex().encode() for _ in range(4000)]
TAR = tar(*(file(b"f%d" % n, b" ".join(_RANDOM.choices(_WORDS, k=4000))) for n in range(90)))
BLOB = gzip_layer(TAR)
BUILT = build(BLOB)
SPANS = BUILT.toc.spans


class Setup(NamedTuple):
    windows: MemoryBlob
    kept: list[bytes]
    was_kept: trio.Event
    fetcher: WindowFetcher


@asynccontextmanager
async def setup(data: bytes = BUILT.windows) -> AsyncIterator[Setup]:
    blob, kept, was_kept = MemoryBlob(data), [], trio.Event()

    def keep(windows: bytes) -> None:
        kept.append(windows)
        trio.from_thread.run_sync(was_kept.set)

    async with trio.open_nursery() as nursery:
        remote = RemoteWindows(blob, digest_of(BUILT.windows), keep)
        yield Setup(blob, kept, was_kept, WindowFetcher(remote, nursery))
        nursery.cancel_scope.cancel()


def window(span: Span) -> bytes:
    return BUILT.windows[span.window_start : span.window_end]


def far_apart(count: int) -> list[Span]:
    """Spans with windows, each in blocks of its own."""
    found: list[Span] = []
    for span in SPANS:
        first = span.window_start // BLOCK_SIZE
        if span.window_start < span.window_end and (
            not found or first > (found[-1].window_end - 1) // BLOCK_SIZE + 1
        ):
            found.append(span)
    assert len(found) >= count, "the layer of this test is too small"
    return found[:count]


async def test_every_window_is_the_files(autojump_clock) -> None:
    async with setup() as one:
        spans = list(SPANS)
        for start in range(0, len(spans), 7):
            brought = await one.fetcher.bring(spans[start : start + 7])
            assert brought == {span.number: window(span) for span in spans[start : start + 7]}


async def test_an_empty_window_needs_no_block_wherever_it_lies(autojump_clock) -> None:
    span = SPANS[0]._replace(window_start=BLOCK_SIZE + 1, window_end=BLOCK_SIZE + 1)
    async with setup() as one:
        assert one.fetcher.take([span]) == {span.number: b""}
        assert one.windows.ranges == []


async def test_neighbours_come_together_and_once(autojump_clock) -> None:
    async with setup() as one:
        first = SPANS[1]
        assert one.fetcher.take([first]) is None
        await one.fetcher.bring([first])
        assert one.windows.ranges == [(0, min(BLOCK_SIZE, len(BUILT.windows)))]
        near = [span for span in SPANS if span.window_end <= BLOCK_SIZE]
        assert len(near) > 3
        assert one.fetcher.take(near) == {span.number: window(span) for span in near}
        assert len(one.windows.ranges) == 1


async def test_once_half_of_it_was_wanted_the_whole_file_comes_and_is_kept(autojump_clock) -> None:
    whole = (0, len(BUILT.windows))
    async with setup() as one:
        for span in SPANS:
            await one.fetcher.bring([span])
            blocks = [end - start for start, end in one.windows.ranges if (start, end) != whole]
            if 2 * sum(blocks) >= len(BUILT.windows) - 1:
                break
            assert whole not in one.windows.ranges
        assert len(blocks) > 1
        await one.was_kept.wait()
        assert one.kept == [BUILT.windows]
        assert one.windows.ranges.count(whole) == 1
        assert one.fetcher.take(list(SPANS)) == {span.number: window(span) for span in SPANS}


async def test_a_large_file_is_never_fetched_whole(autojump_clock, monkeypatch) -> None:
    monkeypatch.setattr("lazyfs.image.indexes.windows.WHOLE_SIZE", 1)
    async with setup() as one:
        spans = far_apart(3)
        await one.fetcher.bring(spans)
        await one.fetcher.bring(list(SPANS))
        assert not one.kept
        assert sum(end - start for start, end in one.windows.ranges) == len(BUILT.windows)


@pytest.mark.expect_log("windows of an index: expected")
async def test_a_damaged_file_is_not_kept(autojump_clock, caplog) -> None:
    damaged = bytearray(BUILT.windows)
    damaged[-1] ^= 1
    async with setup(bytes(damaged)) as one:
        for span in far_apart(3):
            await one.fetcher.bring([span])
        brought = await one.fetcher.bring(list(SPANS))
        for _ in range(1000):
            if not caplog.records:
                await trio.to_thread.run_sync(bool)  # let threads go on
        assert brought[SPANS[-1].number] != window(SPANS[-1])
        assert not one.kept


async def test_a_table_whose_windows_are_too_many_at_once_is_refused_before_any_is_asked_for() -> None:
    places = [2 * number * BLOCK_SIZE for number in range(300)]
    spans = [SPANS[0]._replace(number=n, window_start=at, window_end=at + 9) for n, at in enumerate(places)]
    async with setup(bytes(600 * BLOCK_SIZE)) as one:

        async def limited() -> None:
            assert len(one.windows.ranges) < 1000, "it asks for ever"

        one.windows.before = limited
        with pytest.raises(LimitExceeded):
            await one.fetcher.bring(spans)
        assert one.windows.ranges == []


async def test_who_wants_the_same_block_shares_its_request(autojump_clock) -> None:
    async with setup() as one:
        gate = trio.Event()
        one.windows.before = gate.wait
        async with trio.open_nursery() as nursery:
            for span in SPANS[1:5]:
                nursery.start_soon(one.fetcher.bring, [span])
            await trio.testing.wait_all_tasks_blocked()
            assert len(one.windows.ranges) == 1
            gate.set()
        assert len(one.windows.ranges) == 1


async def test_a_cancelled_reader_leaves_the_block_to_others(autojump_clock) -> None:
    async with setup() as one:
        one.windows.before = trio.sleep_forever
        with trio.move_on_after(1):
            await one.fetcher.bring([SPANS[1]])
        one.windows.before = trio.lowlevel.checkpoint
        assert await one.fetcher.bring([SPANS[1]]) == {1: window(SPANS[1])}


async def test_a_failure_is_told_and_tried_again_by_the_next(autojump_clock) -> None:
    async def fail() -> None:
        raise Unreachable("no")

    async with setup() as one:
        one.windows.before = fail
        with pytest.raises(Unreachable):
            await one.fetcher.bring([SPANS[1]])
        one.windows.before = trio.lowlevel.checkpoint
        assert await one.fetcher.bring([SPANS[1]]) == {1: window(SPANS[1])}


# Beside the compressed bytes


def unpacking(spans: list[Span]):
    start = spans[0].compressed_start

    def unpack(read_window: ReadWindow, data: memoryview) -> list[bytes]:
        cut = [data[s.compressed_start - start : s.compressed_end - start] for s in spans]
        return [read_span(s, d, decompress_window(read_window(s))) for s, d in zip(spans, cut, strict=True)]

    return start, spans[-1].compressed_end, unpack


async def test_windows_and_bytes_are_fetched_at_the_same_time(autojump_clock) -> None:
    async with setup() as one:
        layer, spans = MemoryBlob(BLOB), list(SPANS[1:4])
        begun = {"windows": trio.Event(), "bytes": trio.Event()}

        async def wait_for_both(name: str) -> None:
            begun[name].set()
            with trio.fail_after(5):
                for other in begun.values():
                    await other.wait()

        one.windows.before = partial(wait_for_both, "windows")
        layer.before = partial(wait_for_both, "bytes")
        outputs = await one.fetcher.beside(layer, spans, *unpacking(spans))
        assert b"".join(outputs) == TAR[spans[0].uncompressed_start : spans[-1].uncompressed_end]


async def test_a_wrong_window_is_fetched_anew_next_time(autojump_clock) -> None:
    span = next(span for span in SPANS if span.window_end - span.window_start > 1000)
    other = next(s for s in SPANS if s.number > span.number and s.window_end - s.window_start > 1000)
    wrong = bytearray(BUILT.windows)
    wrong[span.window_start : span.window_end] = window(other)[: span.window_end - span.window_start].ljust(
        span.window_end - span.window_start, b"\0"
    )
    async with setup(bytes(wrong)) as one:
        layer = MemoryBlob(BLOB)
        with pytest.raises(IndexerError) as caught:
            await one.fetcher.beside(layer, [span], *unpacking([span]))
        assert not isinstance(caught.value, DigestMismatch) or caught.value.what == f"span {span.number}"
        one.windows.data = BUILT.windows
        (output,) = await one.fetcher.beside(layer, [span], *unpacking([span]))
        assert output == TAR[span.uncompressed_start : span.uncompressed_end]
        asked = len(one.windows.ranges)
        await one.fetcher.beside(layer, [span], *unpacking([span]))
        assert len(one.windows.ranges) == asked
