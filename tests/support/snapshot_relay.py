"""What stands between containerd and the snapshotter and sees every call: a place to kill one of them at."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

_THREADS = 32
_TIMEOUT_S = 120

Watch = Callable[[str, str], None]
"""Told a method and "before" or "after", in the call's thread; the call waits for it."""


class _Relay(grpc.GenericRpcHandler):
    """Passes all calls on as bytes; each answer is one message or a stream that is taken whole."""

    def __init__(self, channel: grpc.Channel, watch: Watch) -> None:
        self._channel = channel
        self._watch = watch

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[bytes, bytes] | None":
        """The handler of any method: a stream on both sides, as one message is a stream of one."""
        path = str(handler_call_details.method)

        def pass_on(request: bytes, context: Any) -> Iterator[bytes]:
            method = path.rsplit("/", 1)[-1]
            self._watch(method, "before")
            if not context.is_active():  # the snapshotter is to hear nothing of a dead one's call
                return
            ask: grpc.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(path)
            call: Any = ask(request, timeout=_TIMEOUT_S, wait_for_ready=True)  # also says how it went
            try:
                answers = list(call)
            except grpc.RpcError:
                self._watch(method, "after")
                context.abort(call.code(), call.details())
            self._watch(method, "after")
            yield from answers

        return grpc.unary_stream_rpc_method_handler(pass_on)


@contextmanager
def relayed(socket: Path, snapshotter: Path, watch: Watch) -> Iterator[None]:
    """A relay at a socket to the snapshotter at another, which may come later."""
    options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
    with grpc.insecure_channel(f"unix:{snapshotter}", options=options) as channel:
        server = grpc.server(ThreadPoolExecutor(_THREADS), handlers=[_Relay(channel, watch)])
        server.add_insecure_port(f"unix:{socket}")
        server.start()
        try:
            yield
        finally:
            server.stop(None).wait()
