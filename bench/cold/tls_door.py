"""A port that takes TLS and plain TCP alike, and passes the plain bytes on; until its input ends.

    python -m bench.cold.tls_door TO_HOST:PORT CERTIFICATE KEY

It prints its port, on 127.0.0.1. The SOCI snapshotter 0.4 asks for indexes over TLS only, and for layers over
plain HTTP at loopback addresses; a TLS session that ends here costs no round trip.
"""

import socket
import ssl
import sys
from functools import partial
from typing import Final

import trio

_PIECE: Final = 256 << 10
_CLIENT_HELLO: Final = b"\x16"  # the record type of a TLS handshake (RFC 8446, 5.1)
_Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]


async def _serve(host: str, port: int, context: ssl.SSLContext, raw: trio.SocketStream) -> None:
    """One connection."""
    client: _Stream = raw
    try:
        async with raw, await trio.open_tcp_stream(host, port) as server:
            if await raw.socket.recv(1, socket.MSG_PEEK) == _CLIENT_HELLO:
                client = trio.SSLStream(raw, context, server_side=True, https_compatible=True)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_carry, client, server, nursery.cancel_scope)
                nursery.start_soon(_carry, server, client, nursery.cancel_scope)
    except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
        pass


async def _carry(source: _Stream, sink: _Stream, both: trio.CancelScope) -> None:
    """Until one side ends; keep-alive clients of HTTP close whole connections."""
    while piece := await source.receive_some(_PIECE):
        await sink.send_all(piece)
    both.cancel()


async def _listen(server: str, certificate: str, key: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    host, _, port = server.rpartition(":")
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        await nursery.start(
            partial(trio.serve_listeners, partial(_serve, host, int(port), context), listeners)
        )
        print(listeners[0].socket.getsockname()[1], flush=True)
        await trio.to_thread.run_sync(sys.stdin.buffer.read)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(partial(_listen, *sys.argv[1:]))
