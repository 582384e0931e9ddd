"""A frame that another process streams: its spans land as they come, cheaply, and as long as they come."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from indexer.toc import Span
from lazyfs.cache.cache import Cache
from lazyfs.cache.layer_entry import LayerEntry
from lazyfs.image.reading.frame_stream import FrameStream
from lazyfs.image.reading.landing import Landings
from lazyfs.image.reading.traffic import Purpose, Ticket, Traffic
from tests.support.layers import build, digest_of, zstd_frame
from tests.test_t3_layer import TAR, MemoryBlob

BLOB = zstd_frame(TAR)
TOC = build(BLOB).toc
SPANS = list(TOC.spans)


class CountingLandings(Landings):
    """Counts how often a span is said to have landed."""

    told = 0

    def land(self, number: int, *more: Any) -> None:
        self.told += 1
        super().land(number, *more)


def entry_in(path: Path) -> LayerEntry:
    """As each process opens it for itself."""
    header = TOC.header
    return Cache(path).layer(header.layer_digest, digest_of(b""), header.device_size, TOC.spans.leaves)


def bring(entry: LayerEntry, span: Span) -> None:
    entry.put(span.uncompressed_start, span.first_leaf, TAR[span.uncompressed_start : span.uncompressed_end])


@asynccontextmanager
async def watched(path: Path, before: Callable[[LayerEntry], None]) -> AsyncIterator[tuple[Any, Any, Any]]:
    """Another process's entry, the landings of ours, and the task that waits for its stream to end."""
    landings = CountingLandings()
    with entry_in(path) as theirs, entry_in(path) as ours:
        before(theirs)
        ticket = Ticket(Purpose.DEMAND)
        landings.claim((span.number for span in SPANS), ticket)
        stream = FrameStream(SPANS, ours, MemoryBlob(BLOB), landings, Traffic(), ticket, lambda *_: None)
        async with theirs.span_lock(0), trio.open_nursery() as nursery:
            yield theirs, landings, lambda: nursery.start_soon(stream.run, 1 << 20, 30)
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("here", [range(0), range(9, 12)])
async def test_what_another_process_streams_lands_as_it_comes(
    tmp_path: Path, autojump_clock: trio.abc.Clock, here: range
) -> None:
    def before(entry: LayerEntry) -> None:
        for number in here:
            bring(entry, SPANS[number])

    left = {span.number for span in SPANS} - set(here)
    async with watched(tmp_path / "cache", before) as (theirs, landings, begin):
        begin()
        await trio.sleep(1)
        assert set(landings) == left
        for span in SPANS:
            bring(theirs, span)
            await trio.sleep(1)
            assert set(landings) == left - set(range(span.number + 1))
        assert landings.told <= len(SPANS) * (1 + len(here))  # and not at each of thousands of looks


async def test_what_comes_out_of_order_lands_too(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """The disk refused one, or it was evicted again."""
    async with watched(tmp_path / "cache", lambda _: None) as (theirs, landings, begin):
        begin()
        for span in SPANS[5:9]:
            bring(theirs, span)
        await trio.sleep(0.1)
        assert {span.number for span in SPANS} - set(landings) == {span.number for span in SPANS[5:9]}


@pytest.mark.expect_log("another process .*/data` names it. streams what we wait for")
async def test_people_are_told_once_of_a_process_that_brings_nothing(
    tmp_path: Path, autojump_clock: trio.abc.Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async with watched(tmp_path / "cache", lambda _: None) as (theirs, landings, begin):
        begin()
        await trio.sleep(9)
        bring(theirs, SPANS[0])
        await trio.sleep(9)
        assert not caplog.records
        await trio.sleep(1000)
        assert len(caplog.records) == 1
        bring(theirs, SPANS[1])
        await trio.sleep(1)
        assert SPANS[1].number not in landings
