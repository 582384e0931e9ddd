"""A TCP proxy that is far away: `python -m bench.delay TO_HOST:PORT SECONDS [LISTEN_PORT]`.

It runs until its input ends. Each direction takes SECONDS longer, a connection's first bytes two times that
in addition, as a handshake takes. It listens on 127.0.0.1 and prints the port. What TCP does about distance,
slow start above all, is not imitated.
"""

import errno
import sys
from collections import deque
from functools import partial
from typing import Final

import trio

_PIECE: Final = 256 << 10
_MOST_ON_THE_WAY: Final = 16 << 20
"""Bytes that a direction holds at most: 1 Gbit/s for an eighth of a second."""


class _Direction:
    """Bytes on their way from one socket to another."""

    def __init__(self, source: trio.SocketStream, sink: trio.SocketStream, delay_s: float) -> None:
        self._source = source
        self._sink = sink
        self._delay_s = delay_s
        self._on_the_way: deque[tuple[float, bytes]] = deque()
        self._bytes = 0
        self._moved = trio.Event()

    async def run(self, hold_s: float) -> None:
        """Carry everything; the first bytes `hold_s` later still."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._take, hold_s)
            await self._give()

    async def _take(self, hold_s: float) -> None:
        free_at = trio.current_time() + hold_s
        while True:
            piece = await self._source.receive_some(_PIECE)
            due = max(trio.current_time(), free_at) + self._delay_s
            self._on_the_way.append((due, piece))
            self._bytes += len(piece)
            self._note()
            if not piece:
                return
            while self._bytes > _MOST_ON_THE_WAY:
                await self._moved.wait()

    async def _give(self) -> None:
        while True:
            while not self._on_the_way:
                await self._moved.wait()
            due, piece = self._on_the_way.popleft()
            await trio.sleep_until(due)
            if not piece:
                await self._sink.send_eof()
                return
            await self._sink.send_all(piece)
            self._bytes -= len(piece)
            self._note()

    def _note(self) -> None:
        moved, self._moved = self._moved, trio.Event()
        moved.set()


async def _serve(host: str, port: int, delay_s: float, client: trio.SocketStream) -> None:
    """Both directions of one connection; an end that breaks ends it."""
    async with client:
        try:
            server = await trio.open_tcp_stream(host, port)
            async with server, trio.open_nursery() as nursery:
                nursery.start_soon(_Direction(client, server, delay_s).run, 2 * delay_s)
                nursery.start_soon(_Direction(server, client, delay_s).run, 0)
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass


async def _listen(host: str, port: int, delay_s: float, listen_port: int) -> None:
    listeners = await trio.open_tcp_listeners(listen_port, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        handler = partial(_serve, host, port, delay_s)
        await nursery.start(partial(trio.serve_listeners, handler, listeners))
        print(listeners[0].socket.getsockname()[1], flush=True)
        await trio.to_thread.run_sync(sys.stdin.buffer.read)
        nursery.cancel_scope.cancel()


def main() -> None:
    """Listen until standard input ends."""
    to, delay_s, *listen_port = sys.argv[1:]
    host, _, port = to.rpartition(":")
    try:
        trio.run(_listen, host, int(port), float(delay_s), int(listen_port[0]) if listen_port else 0)
    except OSError as error:
        sys.exit(f"bench.delay: {errno.errorcode.get(error.errno or 0, error)}")


if __name__ == "__main__":
    main()
