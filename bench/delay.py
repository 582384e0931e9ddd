"""A TCP proxy that is far away: `python -m bench.delay TO_HOST:PORT SECONDS [LISTEN_PORT]`.

It runs until its input ends. Each direction takes SECONDS longer, a connection's first bytes two times that
in addition, as a handshake takes. It listens on 127.0.0.1 and prints the port. What TCP does about distance,
slow start above all, is not imitated.

Bytes are not copied but moved, by splice(2), into pipes and out of them when they are due: what is measured
shares its processors with this.
"""

import errno
import os
import sys
from collections import deque
from fcntl import F_SETPIPE_SZ, fcntl
from functools import partial
from typing import Final, NamedTuple

import trio

_PIECE: Final = 1 << 20  # what a pipe may hold without privileges
_GATHERED_S: Final = 0.001
_MOST_ON_THE_WAY: Final = 16 << 20
"""Bytes that a direction holds at most: 1 Gbit/s for an eighth of a second."""


class _Pipe(NamedTuple):
    """Holds bytes in the kernel."""

    out: int
    into: int


class _Piece(NamedTuple):
    """Bytes on their way; none are the end."""

    due: float
    size: int
    pipe: _Pipe


class _Direction:
    """Bytes on their way from one socket to another."""

    def __init__(self, source: trio.SocketStream, sink: trio.SocketStream, delay_s: float) -> None:
        self._source = source
        self._sink = sink
        self._delay_s = delay_s
        self._on_the_way: deque[_Piece] = deque()
        self._bytes = 0
        self._moved = trio.Event()
        self._pipes: list[_Pipe] = []
        self._spare: list[_Pipe] = []

    async def run(self, hold_s: float) -> None:
        """Carry everything; the first bytes `hold_s` later still."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._take, hold_s)
                await self._give()
        finally:
            for pipe in self._pipes:
                os.close(pipe.out)
                os.close(pipe.into)

    async def _take(self, hold_s: float) -> None:
        free_at = trio.current_time() + hold_s
        size: int | None = None
        while size != 0:
            await trio.lowlevel.wait_readable(self._source.socket)
            due = max(trio.current_time(), free_at) + self._delay_s
            await trio.sleep(_GATHERED_S)
            pipe = self._spare.pop() if self._spare else self._make_pipe()
            size = _move(self._source.socket.fileno(), pipe.into, _PIECE)
            if size is None:
                self._spare.append(pipe)
                continue
            self._on_the_way.append(_Piece(due, size, pipe))
            self._bytes += size
            self._note()
            while self._bytes > _MOST_ON_THE_WAY:
                await self._moved.wait()

    async def _give(self) -> None:
        while True:
            while not self._on_the_way:
                await self._moved.wait()
            piece = self._on_the_way.popleft()
            await trio.sleep_until(piece.due)
            if not piece.size:
                await self._sink.send_eof()
                return
            left = piece.size
            while left:
                await trio.lowlevel.wait_writable(self._sink.socket)
                left -= _move(piece.pipe.out, self._sink.socket.fileno(), left) or 0
            self._spare.append(piece.pipe)
            self._bytes -= piece.size
            self._note()

    def _make_pipe(self) -> _Pipe:
        pipe = _Pipe(*os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC))
        self._pipes.append(pipe)
        fcntl(pipe.into, F_SETPIPE_SZ, _PIECE)
        return pipe

    def _note(self) -> None:
        moved, self._moved = self._moved, trio.Event()
        moved.set()


def _move(source: int, sink: int, most: int) -> int | None:
    """Bytes moved, 0 at the source's end; None where there are none yet, or no room."""
    try:
        return os.splice(source, sink, most, flags=os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE)
    except BlockingIOError:
        return None


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
