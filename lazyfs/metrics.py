"""Counts for Prometheus, over HTTP on loopback (its text format 0.0.4).

Whoever may connect may ask: nothing is told that has names of files or of users in it.
"""

import ipaddress
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

import trio

from lazyfs.errors import ConfigError

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_MAX_REQUEST: Final = 8192
_TIMEOUT_S: Final = 10.0

_log = logging.getLogger(__name__)


class Metric(NamedTuple):
    """One number.

    Attributes:
        name: without the "lazyfs_" that is put before it; counters end in "_total".
        help: what it is.
        value: the number.
        labels: what tells it from others of this name.
    """

    name: str
    help: str
    value: float
    labels: Mapping[str, str] = {}


def render(metrics: Iterable[Metric]) -> str:
    """The text format: the metrics of one name together, with one line of help and of type."""
    families: dict[str, list[Metric]] = {}
    for metric in metrics:
        families.setdefault(metric.name, []).append(metric)
    lines = []
    for name, family in families.items():
        kind = "counter" if name.endswith("_total") else "gauge"
        lines += [f"# HELP lazyfs_{name} {_escaped(family[0].help)}", f"# TYPE lazyfs_{name} {kind}"]
        lines += [f"lazyfs_{name}{_labels(metric.labels)} {metric.value:.17g}" for metric in family]
    return "".join(f"{line}\n" for line in lines)


def _labels(labels: Mapping[str, str]) -> str:
    pairs = ",".join(f'{name}="{_escaped(value, quotes=True)}"' for name, value in labels.items())
    return f"{{{pairs}}}" if pairs else ""


def _escaped(text: str, *, quotes: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quotes else text


def mount_metrics(answer: Mapping[str, Any]) -> Iterable[Metric]:
    """What a daemon's statistics say: `answer` is what it tells of its reads, sources and traffic."""
    reads = answer["reads"]
    yield Metric("reads_total", "Reads of layers.", reads["hits"], {"result": "hit"})
    yield Metric("reads_total", "", reads["misses"], {"result": "miss"})
    yield Metric("read_bytes_total", "Uncompressed bytes that readers asked for.", reads["bytes"])
    yield Metric("failed_fetches_total", "Fetches that failed.", reads["failures"])
    for purpose, count in answer["traffic"].items():
        told = {"purpose": purpose}
        yield Metric("requests_total", "Requests for content, by whom they are for.", count["requests"], told)
        yield Metric("requested_bytes_total", "Bytes that they asked for.", count["bytes"], told)
    for name in ("control_requests", "data_requests", "control_bytes", "data_bytes", "retries"):
        total = sum(source[name] for source in answer["sources"])
        yield Metric(f"source_{name}_total", "Of registries and the like.", total)
    boot = answer.get("boot")
    if boot:
        yield Metric("boot_pack_written_leaves", "Leaves that the boot pack brought.", boot["written"])
        yield Metric("boot_pack_rejected_leaves", "Leaves of it that were wrong.", boot["rejected"])


def parse_address(text: str) -> tuple[str, int]:
    """(host, port) of "PORT", "HOST:PORT" or "[HOST]:PORT"; the host is a loopback address.

    Raises:
        ConfigError: it is another address, or none.
    """
    host, _, port = text.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not (loopback and port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise ConfigError(f"metrics: expected PORT or a loopback HOST:PORT, got {text!r}")
    return host, int(port)


async def serve_metrics(
    address: str,
    collect: Callable[[], Iterable[Metric]],
    *,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer whoever asks, until cancelled; tells its port when it listens. An address in use is logged.

    Args:
        address: see `parse_address`.
        collect: gives the numbers.
        task_status: is told the port; 0 where nothing can listen.

    Raises:
        ConfigError: it is no address to listen on.
    """
    host, port = parse_address(address)

    async def answer(stream: trio.SocketStream) -> None:
        with trio.move_on_after(_TIMEOUT_S):
            await _answer(stream, collect)

    try:
        listeners = await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        _log.warning("no metrics at %s: %s", address, error.strerror or error)
        task_status.started(0)
        return
    task_status.started(listeners[0].socket.getsockname()[1])
    await trio.serve_listeners(answer, listeners)


async def _answer(stream: trio.SocketStream, collect: Callable[[], Iterable[Metric]]) -> None:
    request = b""
    try:
        while b"\r\n\r\n" not in request:
            more = await stream.receive_some(_MAX_REQUEST)
            request += more
            if not more or len(request) > _MAX_REQUEST:
                return
        words = request.split(b"\r\n", 1)[0].split(b" ")
        found = len(words) == 3 and words[0] == b"GET" and words[1].split(b"?")[0] in (b"/metrics", b"/")
        body = render(collect()).encode() if found else b"there is only GET /metrics\n"
        status = "200 OK" if found else "404 Not Found"
        head = f"HTTP/1.1 {status}\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {len(body)}\r\n"
        await stream.send_all(head.encode() + b"Connection: close\r\n\r\n" + body)
    except trio.BrokenResourceError:
        return  # whoever asked has gone
    finally:
        await trio.aclose_forcefully(stream)
