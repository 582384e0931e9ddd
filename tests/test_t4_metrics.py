"""Counts for Prometheus: its text format, on loopback, whatever strangers send."""

import re
from pathlib import Path
from queue import Queue
from threading import Event
from urllib.request import urlopen

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.core import CounterMetricFamily
from prometheus_client.parser import text_string_to_metric_families

from lazyfs.cache.cache import Cache
from lazyfs.cache.inventory import Usage
from lazyfs.config import parse_address
from lazyfs.errors import ConfigError
from lazyfs.image.reading.histogram import BOUNDS_S, Histogram
from lazyfs.metrics import Collect, mount_metrics, render, serve_metrics, serve_mount_metrics
from tests.support.snapshot_client import status
from tests.support.snapshotters import FakeChains, cri_labels, digest, served

# docs/instrumenting/exposition_formats.md, "Text-based format"
LINE = re.compile(
    r"# (?:HELP|TYPE) [a-z_]+ .*|"
    r'[a-z_]+(?:\{[a-z_]+="(?:[^"\\\n]|\\[\\"n])*"(?:,[a-z_]+="[^"]*")*\})? [0-9.e+-]+'
)
# docs/practices/naming.md: what it counts in, and "total" for what only grows.
NAME = re.compile(r"lazyfs_[a-z_]+?(_bytes|_seconds)?(_total)?")

ANSWER = {
    "reads": {"hits": 3, "misses": 1, "bytes": 1 << 40, "failures": 0},
    "waits": {"network": {"bounds": (0.5, 1.0), "counts": (1, 1, 3), "total": 9.5}},
    "traffic": {"demand": {"requests": 1, "bytes": 7}, "pack": {"requests": 0, "bytes": 0}},
    "source": {
        "control_requests": 22, "data_requests": 33, "control_bytes": 44, "data_bytes": 55, "retries": 1,
    },
    "mounts": 2,
    "cache": {"kinds": {"layers": 77, "tocs": 8}, "quota": 0, "evictions": 1, "evicted_bytes": 6},
    "boot": {"written": 9, "rejected": 0},
}  # fmt: skip


def test_every_line_is_one_of_the_format_and_every_name_is_told_once():
    text = render(mount_metrics(ANSWER)).decode()
    lines = text.splitlines()
    assert all(LINE.fullmatch(line) for line in lines)
    kinds = [line.split()[2:] for line in lines if line.startswith("# TYPE")]
    assert len(kinds) == len({name for name, _ in kinds})
    for name, kind in kinds:
        assert NAME.fullmatch(name)
        assert name.endswith("_total") == (kind == "counter")
    assert {
        'lazyfs_reads_total{result="hit"} 3.0',
        "lazyfs_read_bytes_total 1.099511627776e+12",
        "lazyfs_source_data_requests_total 33.0",
        "lazyfs_mounts 2.0",
        'lazyfs_cache_bytes{kind="layers"} 77.0',
        "lazyfs_cache_evicted_bytes_total 6.0",
        'lazyfs_boot_pack_leaves_total{result="written"} 9.0',
        'lazyfs_read_wait_seconds_bucket{cause="network",le="1.0"} 1.0',
        'lazyfs_read_wait_seconds_bucket{cause="network",le="+Inf"} 3.0',
        'lazyfs_read_wait_seconds_count{cause="network"} 3.0',
        'lazyfs_read_wait_seconds_sum{cause="network"} 9.5',
    } <= set(lines)


@given(st.lists(st.floats(0, 100), max_size=30))
def test_a_histogram_counts_what_is_at_most_each_bound(values):
    histogram = Histogram()
    for value in values:
        histogram.observe(value)
    counts, total = histogram.distribution()
    assert counts == (*(sum(value <= bound for value in values) for bound in BOUNDS_S), len(values))
    assert total == pytest.approx(sum(values))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("9400", ("127.0.0.1", 9400)), ("localhost:1", ("localhost", 1)), ("[::1]:2", ("::1", 2))],
)
def test_addresses_are_of_this_machine(text, expected):
    assert parse_address(text) == expected


@pytest.mark.parametrize(
    "text", ["", "x", "0.0.0.0:1", "10.0.0.1:1", "example.org:1", "127.0.0.1:99999", ":-1"]
)
def test_other_addresses_are_refused(text):
    with pytest.raises(ConfigError, match="metrics"):
        parse_address(text)


async def ask(port: int, request: bytes) -> bytes:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        await stream.send_all(request)
        answer = b""
        async for piece in stream:
            answer += piece
        return answer


async def collect():
    return [CounterMetricFamily("lazyfs_x", "X.", value=5)]


async def test_whoever_asks_is_told():
    async with trio.open_nursery() as nursery:
        port = await nursery.start(serve_metrics, "127.0.0.1:0", collect)
        answer = await ask(port, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4")
        assert body.endswith(b"lazyfs_x_total 5.0\n")
        assert f"Content-Length: {len(body)}".encode() in head
        assert (await ask(port, b"POST /metrics HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 404")
        assert (await ask(port, b"GET /secret HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 404")
        assert await ask(port, b"\0" * 10_000) == b""
        assert (await ask(port, b"GET / HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.1 200")
        nursery.cancel_scope.cancel()


@pytest.mark.expect_log("no metrics at")
async def test_a_port_that_is_taken_is_logged_and_nothing_else():
    async with trio.open_nursery() as nursery:
        port = await nursery.start(serve_metrics, "127.0.0.1:0", collect)
        assert await nursery.start(serve_metrics, f"127.0.0.1:{port}", collect) == 0
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(OSError(5, "Input/output error"), marks=pytest.mark.expect_log("cannot tell metrics")),
        pytest.param(RecursionError(), marks=pytest.mark.expect_log("a bug in the metrics")),
    ],
    ids=["disk", "bug"],
)
async def test_numbers_that_cannot_be_had_end_nothing(error: Exception):
    troubles = [error]

    async def collect_then():
        if troubles:
            raise troubles.pop()
        return await collect()

    async with trio.open_nursery() as nursery:
        port = await nursery.start(serve_metrics, "127.0.0.1:0", collect_then)
        assert (await ask(port, b"GET /metrics HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 500")
        assert (await ask(port, b"GET /metrics HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200")
        nursery.cancel_scope.cancel()


async def test_who_asks_nothing_takes_a_few_descriptors_and_no_more():
    answers = []
    async with trio.open_nursery() as nursery:
        port = await nursery.start(serve_metrics, "127.0.0.1:0", collect)
        silent = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(16)]

        async def scrape() -> None:
            answers.append(await ask(port, b"GET / HTTP/1.0\r\n\r\n"))
            nursery.cancel_scope.cancel()

        nursery.start_soon(scrape)
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert not answers
        for stream in silent:
            stream.socket.close()
    assert answers[0].startswith(b"HTTP/1.1 200")


class SlowCache(Cache):
    """One that is measured only once `go` is set.

    Attributes:
        walks: how often it was.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.go = Event()
        self.walks = 0

    def usage(self) -> Usage:
        self.walks += 1
        assert self.go.wait(60)
        return super().usage()


async def test_many_who_ask_at_once_have_the_cache_walked_once(tmp_path):
    cache, answers = SlowCache(tmp_path / "cache"), []
    async with trio.open_nursery() as nursery:
        port = await nursery.start(serve_mount_metrics, "127.0.0.1:0", lambda: ANSWER, cache)

        async def scrape() -> None:
            answers.append(await ask(port, b"GET / HTTP/1.0\r\n\r\n"))

        async with trio.open_nursery() as askers:
            for _ in range(12):
                askers.start_soon(scrape)
            await trio.testing.wait_all_tasks_blocked(0.1)
            cache.go.set()
        nursery.cancel_scope.cancel()
    assert cache.walks == 1
    assert all(b'lazyfs_cache_bytes{kind="layers"} 0.0' in answer for answer in answers)


def scraped(port: int) -> dict[str, float]:
    """All samples by their names and labels, as the library's own parser reads them."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    samples = [sample for family in families for sample in family.samples]
    return {
        " ".join([sample.name, *(sample.labels[name] for name in sorted(sample.labels))]): sample.value
        for sample in samples
    }


def test_a_snapshotter_tells_of_its_calls_while_it_serves_them(tmp_path):
    ports: Queue[int] = Queue()

    async def tell(collect: Collect) -> None:
        async with trio.open_nursery() as nursery:
            ports.put(await nursery.start(serve_metrics, "127.0.0.1:0", collect))

    chains = FakeChains(tmp_path / "daemon", {"app": [digest("base"), digest("app")]})
    with served(tmp_path / "root", chains, tell=tell) as client:
        port = ports.get(timeout=60)
        with status("ALREADY_EXISTS"):
            client.prepare("1", "", cri_labels("app", [digest("base"), digest("app")], 1))
        client.prepare("on lazy", client.list()[0].name, {})
        client.prepare("unpacked", "", cri_labels("other", [digest("other")], 1))
        client.commit("whole", "unpacked", {})
        client.view("view", "whole", {})
        with status("NOT_FOUND"):
            client.stat("no such")
        chains.away = True
        client.remove("on lazy")
        seen = scraped(port)
    prefix = "lazyfs_snapshotter"
    expected = {
        "snapshots committed true": 1,
        "snapshots committed false": 1,
        "snapshots view false": 1,
        "calls_total ALREADY_EXISTS Prepare": 1,
        "calls_total OK Prepare": 2,
        "calls_total NOT_FOUND Stat": 1,
        "call_duration_seconds_count Prepare": 3,
        "call_duration_seconds_bucket +Inf Prepare": 3,
        "layers_total lazy": 1,
        "layers_total unpacked": 1,
        "created_total lazy": 1,
        "created_total ordinary": 2,
        "daemon_failures_total release": 1,
        "daemon_reconnects_total": 0,
    }
    assert {name: seen.get(f"{prefix}_{name}") for name in expected} == expected
    assert 0 < seen[f"{prefix}_call_duration_seconds_sum Prepare"] < 60
