"""Counts for Prometheus, over HTTP on loopback (its text format 0.0.4).

Whoever may connect may ask, in as many connections as they like: nothing is told that has names of files or
of users in it, and nothing of that may end a mount, or take more than a thread and a few descriptors. Names
follow Prometheus' conventions ("Metric and label naming"): base units, `_total` for what only grows.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, Final

import trio
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from lazyfs.acceptor import accept_connections
from lazyfs.cache.cache import Cache
from lazyfs.config import parse_address
from lazyfs.errors import LazyfsError

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_MAX_REQUEST: Final = 8192
_TIMEOUT_S: Final = 10.0
_CONNECTIONS: Final = 16
_FRESH_S: Final = 1.0

_SOURCE: Final = {
    "control_requests": "Requests for documents, tokens and the like.",
    "control_bytes": "Bytes of their answers.",
    "data_requests": "Requests for blobs, redirects included.",
    "data_bytes": "Bytes of their answers.",
    "retries": "Requests after one that failed.",
}

_log = logging.getLogger(__name__)

Collect = Callable[[], Awaitable[Iterable[Metric]]]
"""Gives what is told now."""


class _Collected(Collector):
    """What a registry tells that knows only this."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def render(metrics: Iterable[Metric]) -> bytes:
    """The text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected(list(metrics)))
    return generate_latest(registry)


def counter(name: str, told: str, label: str, values: Mapping[str, float]) -> Metric:
    """A counter by the values of one label; its name is without "lazyfs_" and "_total"."""
    family = CounterMetricFamily(f"lazyfs_{name}", told, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family


def mount_metrics(answer: Mapping[str, Any]) -> Iterator[Metric]:
    """What a daemon's statistics say: `answer` is what it tells of its reads, sources, traffic and cache."""
    reads = answer["reads"]
    yield counter("reads", "Reads of layers.", "result", {"hit": reads["hits"], "miss": reads["misses"]})
    for name, told, value in (
        ("read_bytes", "Uncompressed bytes that readers asked for.", reads["bytes"]),
        ("failed_fetches", "Fetches that failed.", reads["failures"]),
    ):
        yield CounterMetricFamily(f"lazyfs_{name}", told, value=value)
    yield _waits(answer["waits"])
    traffic = answer["traffic"]
    for name, told, field in (
        ("requests", "Requests for content, by whom they are for.", "requests"),
        ("requested_bytes", "Bytes that they asked for.", "bytes"),
    ):
        yield counter(name, told, "purpose", {purpose: count[field] for purpose, count in traffic.items()})
    for name, told in _SOURCE.items():
        yield CounterMetricFamily(f"lazyfs_source_{name}", told, value=answer["source"][name])
    yield GaugeMetricFamily("lazyfs_mounts", "Mounts that are served.", value=answer["mounts"])
    yield from _cache(answer["cache"])
    if answer.get("boot"):
        leaves = {result: answer["boot"][result] for result in ("written", "rejected")}
        told = "Leaves that the boot pack brought; rejected were wrong."
        yield counter("boot_pack_leaves", told, "result", leaves)


def cache_facts(cache: Cache) -> dict[str, Any]:
    """What is told of a cache. Walks its directory."""
    evictions = cache.housekeeper.evictions()
    return {
        "kinds": cache.usage().kinds,
        "quota": cache.quota_bytes,
        "evictions": evictions.times,
        "evicted_bytes": evictions.bytes,
    }


class _CacheFacts:
    """What is told of a cache. One thread walks it at a time, for all who ask then, or just afterwards."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._one = trio.CapacityLimiter(1)
        self._facts: dict[str, Any] = {}
        self._fresh_until = 0.0

    async def tell(self) -> dict[str, Any]:
        """What `cache_facts` says."""
        return await trio.to_thread.run_sync(self._look, abandon_on_cancel=True, limiter=self._one)

    def _look(self) -> dict[str, Any]:
        if time.monotonic() >= self._fresh_until:
            self._facts = cache_facts(self._cache)
            self._fresh_until = time.monotonic() + _FRESH_S
        return self._facts


def _waits(waits: Mapping[str, Mapping[str, Any]]) -> Metric:
    told = "Seconds that reads waited which were not answered from the cache, by what for."
    family = HistogramMetricFamily("lazyfs_read_wait_seconds", told, labels=["cause"])
    for cause, seen in waits.items():
        family.add_metric([cause], buckets_of(seen["bounds"], seen["counts"]), seen["total"])
    return family


def buckets_of(bounds: Iterable[float], counts: Iterable[int]) -> list[tuple[str, float]]:
    """A histogram's buckets, as the library takes them: at most how much, and how many."""
    return list(zip([*map(str, bounds), "+Inf"], map(float, counts), strict=True))


def _cache(cache: Mapping[str, Any]) -> Iterator[Metric]:
    family = GaugeMetricFamily("lazyfs_cache_bytes", "Disk that the cache takes, by kind.", labels=["kind"])
    for kind, size in cache["kinds"].items():
        family.add_metric([kind], size)
    yield family
    told = "Disk that it may take; 0 is any amount."
    yield GaugeMetricFamily("lazyfs_cache_quota_bytes", told, value=cache["quota"])
    for name, told, field in (
        ("cache_evictions", "Times that this process made room.", "evictions"),
        ("cache_evicted_bytes", "Bytes that it evicted.", "evicted_bytes"),
    ):
        yield CounterMetricFamily(f"lazyfs_{name}", told, value=cache[field])


async def serve_metrics(
    address: str,
    collect: Collect,
    *,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer whoever asks, until cancelled; tells its port when it listens. An address in use is logged.

    Args:
        address: see `parse_address`.
        collect: gives the numbers; may take a while.
        task_status: is told the port; 0 where nothing can listen.

    Raises:
        ConfigError: it is no address to listen on.
    """
    host, port = parse_address(address)
    try:
        listeners = await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        _log.warning("no metrics at %s: %s", address, error.strerror or error)
        task_status.started(0)
        return
    task_status.started(listeners[0].socket.getsockname()[1])
    with ExitStack() as stack:
        async with trio.open_nursery() as nursery:
            for listener in listeners:
                stack.enter_context(listener.socket)
                nursery.start_soon(
                    accept_connections, listener.socket, _CONNECTIONS, partial(_answer, collect)
                )


async def serve_mount_metrics(
    address: str,
    statistics: Callable[[], Mapping[str, Any]],
    cache: Cache,
    *,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Tell what `mount_metrics` makes of a daemon's statistics, and of its cache, until cancelled.

    As `serve_metrics` otherwise.

    Raises:
        ConfigError: there is no such address to listen on.
    """
    facts = _CacheFacts(cache)

    async def collect() -> Iterable[Metric]:
        kept = await facts.tell()
        return mount_metrics({**statistics(), "cache": kept})

    await serve_metrics(address, collect, task_status=task_status)


async def _answer(collect: Collect, stream: trio.SocketStream) -> None:
    request = b""
    with trio.move_on_after(_TIMEOUT_S):
        while b"\r\n\r\n" not in request:
            more = await stream.receive_some(_MAX_REQUEST)
            request += more
            if not more or len(request) > _MAX_REQUEST:
                return
        words = request.split(b"\r\n", 1)[0].split(b" ")
        found = len(words) == 3 and words[0] == b"GET" and words[1].split(b"?")[0] in (b"/metrics", b"/")
        status, body = await _told(collect) if found else ("404 Not Found", b"there is only GET /metrics\n")
        head = f"HTTP/1.1 {status}\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {len(body)}\r\n"
        await stream.send_all(head.encode() + b"Connection: close\r\n\r\n" + body)


async def _told(collect: Collect) -> tuple[str, bytes]:
    """The status and the body of an answer that tells the numbers."""
    try:
        return "200 OK", render(await collect())
    except (OSError, LazyfsError) as error:
        _log.warning("cannot tell metrics: %s", error)
    except Exception:  # noqa: BLE001  # it fails one answer, not the mounts
        _log.exception("a bug in the metrics")
    return "500 Internal Server Error", b"the log says why\n"
