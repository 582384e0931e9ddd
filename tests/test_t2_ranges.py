"""Byte ranges of blobs: right bytes or a clear error, whatever the network and the registry do."""

import random
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from indexer.errors import FormatError
from lazyfs.errors import LazyfsError, NotFound, RangeRefused, SourceError, Unauthorized, Unreachable
from lazyfs.oci.reference import parse_reference
from lazyfs.source.base import PIECE_SIZE
from lazyfs.source.http.retry import RetryPolicy
from lazyfs.source.open import open_registry
from lazyfs.source.registry.source import RegistrySource
from tests.support.registry import Registry
from tests.support.registry_client import SETTINGS, layer_link, source_of
from tests.support.registry_faults import (
    Action,
    Chunked,
    CloseAfter,
    Drip,
    Header,
    IgnoreRange,
    Reset,
    Short,
    Stall,
    StallHead,
    Status,
    UntilClose,
)

DATA = random.Random(1).randbytes(3 * PIECE_SIZE + 777)
LINK = layer_link(DATA)


@pytest.fixture(params=[False, True], ids=["direct", "redirected"])
def server(request: pytest.FixtureRequest) -> Iterator[Registry]:
    with Registry(cdn=request.param) as running:
        running.put_blob("app", DATA)
        yield running


@pytest.fixture
def kind(server: Registry) -> str:
    """Which requests bring content."""
    return "cdn" if server.has_cdn else "blob"


@pytest.fixture
async def source(server: Registry) -> AsyncIterator[RegistrySource]:
    async with source_of(server, stall_timeout_s=5.0) as opened:
        yield opened


async def pulled(source: RegistrySource) -> bytes:
    pieces: list[bytes] = []
    await source.blob(LINK).pull(lambda piece: pieces.append(bytes(piece)))
    assert all(len(piece) <= PIECE_SIZE for piece in pieces)
    return b"".join(pieces)


async def test_a_range_is_the_slice_of_the_blob(source: RegistrySource) -> None:
    blob = source.blob(LINK)
    for start, end in ((0, 1), (0, len(DATA)), (5, 5), (100, 70_000), (len(DATA) - 1, len(DATA))):
        assert await blob.fetch(start, end, bytes) == DATA[start:end]


async def test_a_range_costs_one_request_and_its_own_bytes(
    server: Registry, source: RegistrySource, kind: str
) -> None:
    blob = source.blob(LINK)
    for start in range(0, 50_000, 5000):
        await blob.fetch(start, start + 1000, bytes)
    assert server.requests["GET", kind] == 10
    assert server.journal.bytes_sent[kind] == 10_000
    assert server.journal.connections == (2 if server.has_cdn else 1)


async def test_a_pull_is_the_whole_blob_in_one_request(
    server: Registry, source: RegistrySource, kind: str
) -> None:
    assert await pulled(source) == DATA
    assert server.requests["GET", kind] == 1
    assert "range" not in server.seen[-1].headers


async def test_an_empty_blob_costs_nothing(server: Registry, source: RegistrySource) -> None:
    server.put_blob("app", b"")
    blob = source.blob(layer_link(b""))
    await blob.pull(lambda _: pytest.fail("there are no bytes"))
    assert await blob.fetch(0, 0, bytes) == b""
    assert server.seen == []


@pytest.mark.parametrize(("start", "end"), [(-1, 5), (5, 4), (0, len(DATA) + 1)])
async def test_a_range_outside_the_blob_is_refused_unasked(
    server: Registry, source: RegistrySource, start: int, end: int
) -> None:
    with pytest.raises(RangeRefused, match="outside"):
        await source.blob(LINK).fetch(start, end, bytes)
    assert server.seen == []


PASSING: dict[str, tuple[Action, int, int]] = {  # fault, how often, requests that content takes then
    "short body": (Short(10), 1, 2),
    "half a body": (Short(50_000), 2, 3),
    "no body": (Short(10_000_000), 2, 3),
    "reset in the head": (Reset(-1), 2, 3),
    "reset in the body": (Reset(1000), 1, 2),
    "reset before the body": (Reset(0), 3, 4),
    "closed after the answer": (CloseAfter(), 1, 1),
    "500": (Status(500), 1, 2),
    "502": (Status(502), 2, 3),
    "503": (Status(503, {"Retry-After": "0"}), 3, 4),
    "429 with seconds": (Status(429, {"Retry-After": "1000"}), 1, 2),
    "429 with a date": (Status(429, {"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}), 1, 2),
    "408": (Status(408), 1, 2),
    "Content-Range missing": (Header("Content-Range", None), 1, 2),
    "Content-Range garbled": (Header("Content-Range", "bytes x-y/z"), 1, 2),
    "another range": (Header("Content-Range", f"bytes 0-99/{len(DATA)}"), 1, 2),
    "length of the whole unknown": (Header("Content-Range", "bytes 1000-100999/*"), 1, 1),
    "the range ignored": (IgnoreRange(), 1, 1),
    "chunks": (Chunked(1000), 1, 1),
    "length untold": (UntilClose(), 1, 1),
}


@pytest.mark.parametrize("case", PASSING)
async def test_what_passes_is_tried_again(
    server: Registry, source: RegistrySource, kind: str, case: str
) -> None:
    fault, times, requests = PASSING[case]
    server.faults.add(kind, fault, times=times)
    assert await source.blob(LINK).fetch(1000, 101_000, bytes) == DATA[1000:101_000]
    assert server.requests["GET", kind] == requests
    assert source.statistics().retries == requests - 1
    assert await source.blob(LINK).fetch(7, 8, bytes) == DATA[7:8]


@pytest.mark.parametrize("case", [case for case in PASSING if "ange" not in case])
async def test_a_pull_survives_what_passes(
    server: Registry, source: RegistrySource, kind: str, case: str
) -> None:
    fault, times, requests = PASSING[case]
    server.faults.add(kind, fault, times=times)
    assert await pulled(source) == DATA
    assert server.requests["GET", kind] == requests


async def test_a_stalled_body_is_given_up_and_resumed(server: Registry, kind: str) -> None:
    server.faults.add(kind, Stall(70_000))
    async with source_of(server, stall_timeout_s=0.5) as source:
        assert await source.blob(LINK).fetch(0, 200_000, bytes) == DATA[:200_000]
    resumed = server.seen[-1].headers["range"]
    assert resumed.endswith("-199999")
    assert not resumed.startswith("bytes=0-")


async def test_a_stalled_head_is_given_up(server: Registry, kind: str) -> None:
    server.faults.add(kind, StallHead())
    async with source_of(server, stall_timeout_s=0.05) as source:
        assert await source.blob(LINK).fetch(0, 10, bytes) == DATA[:10]


async def test_a_broken_pull_goes_on_where_it_broke(
    server: Registry, source: RegistrySource, kind: str
) -> None:
    server.faults.add(kind, Short(1000))
    assert await pulled(source) == DATA
    assert server.seen[-1].headers["range"] == f"bytes={len(DATA) - 1000}-{len(DATA) - 1}"
    assert server.journal.bytes_sent[kind] == len(DATA)


async def test_a_pull_breaks_any_number_of_times_while_it_gets_on(
    server: Registry, source: RegistrySource, kind: str
) -> None:
    server.faults.add(kind, Reset(100_000), times=7)
    assert await pulled(source) == DATA


async def test_a_broken_pull_reads_past_what_it_has_where_ranges_are_ignored(
    server: Registry, source: RegistrySource, kind: str
) -> None:
    server.faults.add(kind, Short(1000))
    server.faults.add(kind, IgnoreRange())
    assert await pulled(source) == DATA


FINAL: dict[str, tuple[Action, type[Exception], str]] = {
    "416": (Status(416), RangeRefused, "HTTP 416"),
    "402": (Status(402), SourceError, "HTTP 402"),
    "wrong total": (Header("Content-Range", "bytes 0-9/1000"), FormatError, "1000 bytes at its source"),
    "encoded": (Header("Content-Encoding", "gzip"), SourceError, "'gzip'"),
}


@pytest.mark.parametrize("case", FINAL)
async def test_what_stays_is_an_error_at_once(
    server: Registry, source: RegistrySource, kind: str, case: str
) -> None:
    fault, error, message = FINAL[case]
    server.faults.add(kind, fault)
    with pytest.raises(error, match=message):
        await source.blob(LINK).fetch(0, 10, bytes)
    assert server.requests["GET", kind] == 1
    assert await source.blob(LINK).fetch(0, 10, bytes) == DATA[:10]


async def test_no_more_of_an_error_is_read_than_is_shown() -> None:
    """Of a chunk of -1 bytes http.client reads all that comes."""
    most = 64 << 20

    def answer() -> int:
        taken = 0
        with listening.accept()[0] as connection, suppress(OSError):
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 404 No\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n")
            while taken < most:
                taken += connection.send(bytes(1 << 20))
        return taken

    with socket.create_server(("127.0.0.1", 0)) as listening:
        reference = parse_reference(f"127.0.0.1:{listening.getsockname()[1]}/app:1")
        sent: list[int] = []
        once = replace(SETTINGS, retry=RetryPolicy(retries=0))
        async with trio.open_nursery() as nursery, open_registry(reference, once) as source:

            async def serve() -> None:
                sent.append(await trio.to_thread.run_sync(answer))

            nursery.start_soon(serve)
            with pytest.raises(SourceError):
                await source.blob(LINK).fetch(0, 10, bytes)
    assert sent[0] < most


@pytest.mark.parametrize("action", [Status(503), Short(100), Reset(-1)])
async def test_patience_ends_with_what_happened(
    server: Registry, source: RegistrySource, kind: str, action: Action
) -> None:
    server.faults.add(kind, action, times=4)
    with pytest.raises(Unreachable, match="gave up after 4 attempts") as error:
        await source.blob(LINK).fetch(0, 50, bytes)
    assert LINK.digest in str(error.value)
    assert error.value.status == (503 if isinstance(action, Status) else None)
    assert server.faults.pending == 0


async def test_a_server_that_is_not_there_is_unreachable() -> None:
    with Registry() as server:
        pass
    async with source_of(server) as source:
        with pytest.raises(Unreachable, match=r"cannot connect to http://127\.0\.0\.1"):
            await source.blob(LINK).fetch(0, 50, bytes)


@pytest.mark.parametrize(("status", "error"), [(404, NotFound), (403, Unauthorized), (400, SourceError)])
async def test_a_registry_that_has_no_blob_is_asked_once(
    server: Registry, source: RegistrySource, status: int, error: type[LazyfsError]
) -> None:
    server.faults.add("blob", Status(status))
    with pytest.raises(error, match=LINK.digest):
        await source.blob(LINK).fetch(0, 50, bytes)
    assert server.requests["GET", "blob"] == 1


async def test_a_missing_blob_is_named_with_the_registrys_code(source: RegistrySource) -> None:
    with pytest.raises(NotFound, match="BLOB_UNKNOWN"):
        await source.blob(layer_link(b"absent")).fetch(0, 1, bytes)


async def test_a_range_far_in_is_not_bought_with_the_whole_blob(
    server: Registry, source: RegistrySource
) -> None:
    large = bytes((4 << 20) + 10_000)
    server.put_blob("app", large)
    server.faults.add("cdn" if server.has_cdn else "blob", IgnoreRange(), times=2)
    blob = source.blob(layer_link(large))
    with pytest.raises(RangeRefused, match="ignores ranges"):
        await blob.fetch((4 << 20) + 1, (4 << 20) + 100, bytes)
    assert await blob.fetch(4 << 20, (4 << 20) + 100, bytes) == bytes(100)


async def test_where_ranges_are_ignored_time_and_again_no_more_is_read_past(
    server: Registry, source: RegistrySource
) -> None:
    kind = "cdn" if server.has_cdn else "blob"
    blob = source.blob(layer_link(DATA))
    third = len(DATA) // 3
    for _ in range(3):  # as often as the server keeps to a range in between
        server.faults.add(kind, IgnoreRange(), times=2)
        for start in (third, 2 * third, third):
            assert await blob.fetch(start, start + 100, bytes) == DATA[start : start + 100]
    server.faults.add(kind, IgnoreRange(), times=4)
    for start in (third, 2 * third):
        assert await blob.fetch(start, start + 100, bytes) == DATA[start : start + 100]
    with pytest.raises(RangeRefused, match="ignores ranges"):
        await blob.fetch(third, third + 100, bytes)
    assert await blob.fetch(0, 100, bytes) == DATA[:100]  # nothing to be read past


async def test_a_blob_of_another_size_is_found_out(server: Registry, source: RegistrySource) -> None:
    blob = source.blob(layer_link(DATA, size=len(DATA) + 1))
    with pytest.raises(FormatError, match="by its descriptor"):
        await blob.pull(lambda _: None)
    with pytest.raises(FormatError, match="by its descriptor"):
        await blob.fetch(0, 10, bytes)


async def test_what_the_consumer_raises_passes_through(server: Registry, source: RegistrySource) -> None:
    def full_disk(_: memoryview) -> None:
        raise OSError(28, "No space left on device")

    blob = source.blob(LINK)
    with pytest.raises(OSError, match="No space"):
        await blob.fetch(0, 10, full_disk)
    with pytest.raises(OSError, match="No space"):
        await blob.pull(full_disk)
    assert source.statistics().retries == 0
    assert await blob.fetch(0, 10, bytes) == DATA[:10]


async def test_the_consumer_runs_in_the_thread_that_received() -> None:
    with Registry() as server:
        server.put_blob("app", DATA)
        async with source_of(server) as source:
            assert not await source.blob(LINK).fetch(0, 10, lambda _: trio_is_running_here())


def trio_is_running_here() -> bool:
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("action", [StallHead(), Stall(0), Stall(5)])
async def test_a_cancelled_fetch_ends_and_leaves_the_way_free(
    server: Registry, kind: str, action: Action
) -> None:
    server.faults.add(kind, action)
    async with source_of(server, max_connections=1, stall_timeout_s=60) as source:
        blob = source.blob(LINK)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(blob.fetch, 0, 10, lambda _: pytest.fail("no bytes came"))
            await trio.to_thread.run_sync(server.wait_stalled)
            nursery.cancel_scope.cancel()
        server.release()
        assert await blob.fetch(0, 10, bytes) == DATA[:10]


async def test_the_consumer_is_at_rest_once_a_pull_was_cancelled(server: Registry, kind: str) -> None:
    server.faults.add(kind, Drip(PIECE_SIZE))
    pieces: list[int] = []
    first = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def consume(piece: memoryview) -> None:
        pieces.append(len(piece))
        token.run_sync_soon(first.set)

    async with source_of(server) as source:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source.blob(LINK).pull, consume)
            server.drip()
            await first.wait()
            nursery.cancel_scope.cancel()
        seen = list(pieces)
        server.drip(100)
        assert await source.blob(LINK).fetch(0, 10, bytes) == DATA[:10]
    assert pieces == seen == [PIECE_SIZE]


async def test_a_deadline_ends_a_fetch_that_waits(
    server: Registry, source: RegistrySource, kind: str
) -> None:
    server.faults.add(kind, Stall(5))
    with trio.move_on_after(0.05) as scope:
        await source.blob(LINK).fetch(0, 10, bytes)
    assert scope.cancelled_caught


async def test_no_retry_is_begun_that_the_deadline_would_cut(server: Registry, kind: str) -> None:
    patient = RetryPolicy(most_retry_after_s=60)
    server.faults.add(kind, Status(503, {"Retry-After": "5"}), times=9)
    async with source_of(server, retry=patient) as source:
        with pytest.raises(Unreachable, match="no time is left"), trio.fail_after(4):
            await source.blob(LINK).fetch(0, 10, bytes)
    assert server.requests["GET", kind] == 1


async def test_connections_stay_within_their_number(server: Registry, kind: str) -> None:
    async with source_of(server, max_connections=3) as source, trio.open_nursery() as nursery:
        blob = source.blob(LINK)

        async def read(start: int) -> None:
            assert await blob.fetch(start, start + 50_000, bytes) == DATA[start : start + 50_000]

        for start in range(0, 64_000, 1000):
            nursery.start_soon(read, start)
    assert server.requests["GET", kind] == 64
    assert server.journal.connections <= 3 + server.has_cdn


FAULTS = st.one_of(
    st.builds(Short, st.integers(1, len(DATA))),
    st.builds(Reset, st.integers(-1, len(DATA))),
    st.just(IgnoreRange()),
    st.just(CloseAfter()),
    st.just(Status(503)),
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(FAULTS, max_size=3), st.integers(0, len(DATA)), st.integers(0, len(DATA)))
async def test_whatever_breaks_each_byte_comes_once(faults: list[Action], one: int, other: int) -> None:
    start, end = sorted((one, other))
    with Registry() as server:
        server.put_blob("app", DATA)
        async with source_of(server) as source:
            for fault in faults if start < end else ():
                server.faults.add("blob", fault)
            assert await source.blob(LINK).fetch(start, end, bytes) == DATA[start:end]
            for fault in faults[server.faults.pending :]:  # some may not have come to pass
                server.faults.add("blob", fault)
            assert await pulled(source) == DATA


async def test_prepared_connections_are_used_by_requests_that_come_together() -> None:
    with Registry() as near:
        near.put_blob("app", DATA)
        async with source_of(near) as source:
            await source.hosts[0].prepare(3)
            blob = source.blob(LINK)
            await blob.fetch(0, 1, bytes)
            async with trio.open_nursery() as nursery:
                for start in range(3):
                    nursery.start_soon(blob.fetch, start, start + 60_000, bytes)
            assert near.journal.connections == 3
    async with source_of(near) as source:  # nobody listens any more
        await source.hosts[0].prepare(3)
