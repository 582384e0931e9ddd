"""Counts for Prometheus: its text format, on loopback, whatever strangers send."""

import re

import pytest
import trio

from lazyfs.errors import ConfigError
from lazyfs.metrics import Metric, mount_metrics, parse_address, render, serve_metrics

# docs/instrumenting/exposition_formats.md, "Text-based format"
LINE = re.compile(
    r"# (?:HELP|TYPE) [a-z_]+ .*|"
    r'[a-z_]+(?:\{[a-z_]+="(?:[^"\\\n]|\\[\\"n])*"(?:,[a-z_]+="[^"]*")*\})? [0-9.e+-]+'
)

ANSWER = {
    "reads": {"hits": 3, "misses": 1, "bytes": 1 << 40, "failures": 0},
    "traffic": {"demand": {"requests": 1, "bytes": 7}, "pack": {"requests": 0, "bytes": 0}},
    "sources": [
        {"control_requests": 2, "data_requests": 3, "control_bytes": 4, "data_bytes": 5, "retries": 0},
        {"control_requests": 20, "data_requests": 30, "control_bytes": 40, "data_bytes": 50, "retries": 1},
    ],
    "boot": {"written": 9, "rejected": 0},
}


def test_every_line_is_one_of_the_format_and_every_name_is_told_once():
    text = render(mount_metrics(ANSWER))
    lines = text.splitlines()
    assert all(LINE.fullmatch(line) for line in lines)
    kinds = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(kinds) == len(set(kinds))
    assert 'lazyfs_reads_total{result="hit"} 3' in lines
    assert "lazyfs_read_bytes_total 1099511627776" in lines
    assert "lazyfs_source_data_requests_total 33" in lines
    assert "# TYPE lazyfs_boot_pack_written_leaves gauge" in lines


def test_labels_are_escaped():
    text = render([Metric("x_total", "a\nb\\", 1, {"name": 'a"b\\c\nd'})])
    assert text == (
        "# HELP lazyfs_x_total a\\nb\\\\\n# TYPE lazyfs_x_total counter\n"
        'lazyfs_x_total{name="a\\"b\\\\c\\nd"} 1\n'
    )


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


async def test_whoever_asks_is_told():
    async with trio.open_nursery() as nursery:
        collect = lambda: [Metric("x_total", "X.", 5)]  # noqa: E731  # one line of it
        port = await nursery.start(serve_metrics, "127.0.0.1:0", collect)
        answer = await ask(port, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4")
        assert body.endswith(b"lazyfs_x_total 5\n")
        assert f"Content-Length: {len(body)}".encode() in head
        assert (await ask(port, b"POST /metrics HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 404")
        assert (await ask(port, b"GET /secret HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 404")
        assert await ask(port, b"\0" * 10_000) == b""
        assert (await ask(port, b"GET / HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.1 200")
        nursery.cancel_scope.cancel()


@pytest.mark.expect_log("no metrics at")
async def test_a_port_that_is_taken_is_logged_and_nothing_else():
    async with trio.open_nursery() as nursery:
        port = await nursery.start(serve_metrics, "127.0.0.1:0", list)
        assert await nursery.start(serve_metrics, f"127.0.0.1:{port}", list) == 0
        nursery.cancel_scope.cancel()
