"""Counts what passes between clients and a registry: a TCP relay that reads along, in a process of its own.

    python -m bench.cold.tap TO_HOST:PORT LISTEN_HOST

It prints its port, then answers each line of its input, and ends with its input: an empty line with one JSON
list of the exchanges since the last; "stop" and "go" with the same, once it has stopped listening and ended
all connections, and once it listens again. HTTP/1.1 without pipelining, which is what clients of registries
speak: all that a connection carries down between two requests is the answer to the first.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from subprocess import PIPE, Popen
from typing import Any, Final, NamedTuple

import trio

_PIECE: Final = 256 << 10
_HEAD_END: Final = b"\r\n\r\n"
_MOST_HEAD: Final = 64 << 10


class Exchange(NamedTuple):
    """One request and its answer, as the registry's side of the link saw it.

    Attributes:
        start_s: when the request was here, by the monotonic clock.
        end_s: when the last byte of the answer had left; None without an answer.
        method: "GET".
        target: "/v2/NAME/blobs/sha256:...".
        range: the Range header's value, "" without one.
        status: of the answer; 0 without one.
        down: bytes of the answer so far, with its head.
    """

    start_s: float
    end_s: float | None
    method: str
    target: str
    range: str
    status: int
    down: int


class Reading:
    """What one connection says, from its bytes in any cuts.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._head = b""
        self._answer = b""
        self._open: Exchange | None = None
        self._done: list[Exchange] = []

    def up(self, piece: bytes) -> None:
        """Bytes of the client."""
        self._head += piece
        while _HEAD_END in self._head:
            head, _, self._head = self._head.partition(_HEAD_END)
            self._close()
            self._open, self._answer = _request(head, self._clock()), b""
        self._head = self._head[-_MOST_HEAD:]

    def down(self, piece: bytes) -> None:
        """Bytes of the registry."""
        if self._open is None:
            return
        if len(self._answer) < 16:
            self._answer += piece[:16]
        words = self._answer.split()
        status = int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
        self._open = self._open._replace(
            end_s=self._clock(), status=status, down=self._open.down + len(piece)
        )

    def take(self) -> list[Exchange]:
        """The exchanges since the last call; one that may go on comes again, with what came since then."""
        taken, self._done = self._done, []
        if self._open is not None and (self._open.down or not self._open.end_s):
            taken.append(self._open)
            self._open = self._open._replace(down=0)
        return taken

    def _close(self) -> None:
        if self._open is not None:
            self._done.append(self._open)
        self._open = None


def _request(head: bytes, now: float) -> Exchange:
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, *_ = [*first.split(" "), "", ""]
    fields = (line.partition(":") for line in lines)
    ranges = [value.strip() for name, _, value in fields if name.lower() == "range"]
    return Exchange(now, None, method, target, ranges[0] if ranges else "", 0, 0)


class Tap:
    """A relay that is running; made by `tap`."""

    def __init__(self, process: "Popen[str]", address: str) -> None:
        self._process = process
        self.address: Final = address

    def take(self) -> list[Exchange]:
        """The exchanges since the last call, by their beginnings."""
        return self._ask("")

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Connections are refused meanwhile."""
        self._ask("stop")
        try:
            yield
        finally:
            self._ask("go")

    def _ask(self, word: str) -> list[Exchange]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(word, file=self._process.stdin, flush=True)
        told: list[list[Any]] = json.loads(self._process.stdout.readline())
        return sorted(Exchange(*fields) for fields in told)


@contextmanager
def tap(server: str, listen_host: str) -> Iterator[Tap]:
    """A relay to `server`, "HOST:PORT", listening on `listen_host`."""
    command = [sys.executable, "-m", __name__, server, listen_host]
    process = Popen(command, stdin=PIPE, stdout=PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None
        yield Tap(process, f"{listen_host}:{process.stdout.readline().strip()}")
    finally:
        process.communicate()


class _Relay:
    """The process's side."""

    def __init__(self, server: str) -> None:
        host, _, port = server.rpartition(":")
        self._host, self._port = host, int(port)
        self._readings: set[Reading] = set()
        self._ended: list[Exchange] = []

    async def serve(self, client: trio.SocketStream) -> None:
        """One connection."""
        reading = Reading(time.monotonic)
        self._readings.add(reading)
        try:
            async with client, await self._connect() as server, trio.open_nursery() as nursery:
                nursery.start_soon(_carry, client, server, reading.up)
                nursery.start_soon(_carry, server, client, reading.down)
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self._readings.remove(reading)
            self._ended += reading.take()

    async def _connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream(self._host, self._port)

    def take(self) -> list[Exchange]:
        """The exchanges of all connections since the last call."""
        taken, self._ended = self._ended, []
        return [*taken, *(exchange for reading in self._readings for exchange in reading.take())]


async def _carry(source: trio.SocketStream, sink: trio.SocketStream, read: Callable[[bytes], None]) -> None:
    while piece := await source.receive_some(_PIECE):
        read(piece)
        await sink.send_all(piece)
    await sink.send_eof()


async def _run(server: str, listen_host: str) -> None:
    relay = _Relay(server)
    port, line = 0, "go"
    while line:
        listeners = await trio.open_tcp_listeners(port, host=listen_host)
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(trio.serve_listeners, relay.serve, listeners))
            told: object = relay.take()
            if not port:
                told = port = listeners[0].socket.getsockname()[1]
            line = await _answer_until("stop", relay, told)
            nursery.cancel_scope.cancel()
        line = line and await _answer_until("go", relay, relay.take())


async def _answer_until(word: str, relay: _Relay, told: object) -> str:
    """Tell something, then answer lines till one that is this word, or none comes; returns it."""
    line = "\n"
    while line == "\n":
        print(json.dumps(told), flush=True)
        line = await trio.to_thread.run_sync(sys.stdin.readline)
        told = relay.take()
    assert line.strip() in {"", word}
    return line


if __name__ == "__main__":
    trio.run(partial(_run, *sys.argv[1:]))
