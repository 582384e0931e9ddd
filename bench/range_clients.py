"""Byte ranges by several clients: `python -m bench.range_clients CLIENT URL SIZE [CA_FILE]`.

Each fetches the same ranges of 1 MiB, eight at a time, in a process of its own, and prints MB per CPU second
of that process: what an HTTP client costs, whatever the network gives.
"""

# ruff: noqa: PLC0415  # a process imports the one client it measures

import queue
import resource
import ssl
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

RANGE_SIZE: Final = 1 << 20
AT_ONCE: Final = 8
TOTAL: Final = 768 << 20


class Blob(NamedTuple):
    """What ranges are of: its URL and size, and a PEM file of authorities."""

    url: str
    size: int
    ca_file: str | None


Ranges = Sequence[tuple[int, int]]
Fetch = Callable[[int, int], int]


def main() -> None:
    """Fetch, then say how much a CPU second fetched."""
    client, url, size, *ca_file = sys.argv[1:]
    run = CLIENTS[client]
    blob = Blob(url, int(size), ca_file[0] if ca_file else None)
    ranges = list(ranges_of(blob.size, TOTAL))
    run(blob, ranges[:AT_ONCE])  # imports
    before = _cpu_s()
    run(blob, ranges)
    print(sum(end - start for start, end in ranges) / 1e6 / (_cpu_s() - before))


def ranges_of(size: int, total: int) -> Iterator[tuple[int, int]]:
    """Ranges of 1 MiB of a blob of `size` bytes, again from its start until they sum up to `total`."""
    starts = range(0, size - RANGE_SIZE, RANGE_SIZE)
    for number in range(total // RANGE_SIZE):
        start = starts[number % len(starts)]
        yield start, start + RANGE_SIZE


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _lazyfs(blob: Blob, ranges: Ranges) -> None:
    import trio

    from lazyfs.oci.descriptor import Descriptor
    from lazyfs.oci.image_name import parse_image
    from lazyfs.source.http.settings import SourceSettings
    from lazyfs.source.open import open_source

    parts = urlsplit(blob.url)
    repository, _, digest = parts.path.removeprefix("/v2/").partition("/blobs/")
    ca_file = Path(blob.ca_file) if blob.ca_file else None
    settings = SourceSettings(plain_http=parts.scheme == "http", ca_file=ca_file, max_connections=AT_ONCE)
    descriptor = Descriptor("application/vnd.oci.image.layer.v1.tar+gzip", digest, blob.size)

    async def work() -> None:
        image = parse_image(f"{parts.netloc}/{repository}:latest")
        async with open_source(image, settings) as source:
            layer = source.blob(descriptor)
            await _in_turn(ranges, lambda start, end: layer.fetch(start, end, len))

    trio.run(work)


async def _in_turn(ranges: Ranges, fetch: Callable[[int, int], Any]) -> None:
    """All ranges under trio, AT_ONCE at a time."""
    import trio

    left = iter(ranges)

    async def worker() -> None:
        for start, end in left:
            got = await fetch(start, end)
            assert got == end - start

    async with trio.open_nursery() as nursery:
        for _ in range(AT_ONCE):
            nursery.start_soon(worker)


def _httpx(blob: Blob, ranges: Ranges) -> None:
    import httpx
    import trio

    async def work() -> None:
        async with httpx.AsyncClient(verify=_context(blob.ca_file)) as client:

            async def fetch(start: int, end: int) -> int:
                answer = await client.get(blob.url, headers=_range(start, end))
                return len(answer.content)

            await _in_turn(ranges, fetch)

    trio.run(work)


def _httpcore(blob: Blob, ranges: Ranges) -> None:
    import httpcore
    import trio

    async def work() -> None:
        async with httpcore.AsyncConnectionPool(_context(blob.ca_file), max_connections=AT_ONCE) as pool:

            async def fetch(start: int, end: int) -> int:
                return len(
                    (await pool.request("GET", blob.url, headers=list(_range(start, end).items()))).content
                )

            await _in_turn(ranges, fetch)

    trio.run(work)


def _urllib3(blob: Blob, ranges: Ranges) -> None:
    import urllib3

    pool = urllib3.PoolManager(maxsize=AT_ONCE, ca_certs=blob.ca_file)
    _in_threads(
        ranges, lambda: lambda start, end: len(pool.request("GET", blob.url, headers=_range(start, end)).data)
    )


def _http_client(blob: Blob, ranges: Ranges) -> None:
    import http.client

    parts = urlsplit(blob.url)

    def connect() -> Fetch:
        connection = (
            http.client.HTTPSConnection(parts.netloc, context=_context(blob.ca_file))
            if parts.scheme == "https"
            else http.client.HTTPConnection(parts.netloc)
        )
        buffer = bytearray(RANGE_SIZE)

        def fetch(start: int, end: int) -> int:
            connection.request("GET", parts.path, headers=_range(start, end))
            answer = connection.getresponse()
            got = 0
            while count := answer.readinto(memoryview(buffer)[got:]):
                got += count
            answer.close()
            return got

        return fetch

    _in_threads(ranges, connect)


def _aiohttp(blob: Blob, ranges: Ranges) -> None:
    import asyncio

    import aiohttp

    async def work() -> None:
        left = iter(ranges)

        async def worker(session: aiohttp.ClientSession) -> None:
            for start, end in left:
                async with session.get(blob.url, headers=_range(start, end)) as answer:
                    assert len(await answer.read()) == end - start

        connector = aiohttp.TCPConnector(ssl=_context(blob.ca_file))
        async with aiohttp.ClientSession(connector=connector) as session:
            await asyncio.gather(*(worker(session) for _ in range(AT_ONCE)))

    asyncio.run(work())


def _in_threads(ranges: Ranges, connect: Callable[[], Fetch]) -> None:
    left: queue.SimpleQueue[tuple[int, int] | None] = queue.SimpleQueue()
    for wanted in (*ranges, *[None] * AT_ONCE):
        left.put(wanted)

    def worker() -> None:
        fetch = connect()
        while wanted := left.get():
            assert fetch(*wanted) == wanted[1] - wanted[0]

    threads = [threading.Thread(target=worker) for _ in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _range(start: int, end: int) -> dict[str, str]:
    return {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}


def _context(ca_file: str | None) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca_file)


CLIENTS: Final[dict[str, Callable[[Blob, Ranges], None]]] = {
    "lazyfs": _lazyfs,
    "httpx": _httpx,
    "httpcore": _httpcore,
    "urllib3": _urllib3,
    "aiohttp": _aiohttp,
    "http.client": _http_client,
}


if __name__ == "__main__":
    main()
