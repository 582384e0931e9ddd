"""The snapshotter as a gRPC service on a unix socket.

gRPC brings threads of its own; each call enters trio, where the snapshotter lives, and waits there. A client
that goes away does not stop what it asked for.
"""

import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import grpc
import trio

from lazyfs.errors import ConfigError
from lazyfs.snapshotter.metrics import SnapshotterCounts
from lazyfs.snapshotter.model import (
    BadSnapshotCall,
    ChainAway,
    DiskRefused,
    NoSnapshot,
    SnapshotError,
    SnapshotExists,
    SnapshotInUse,
)
from lazyfs.snapshotter.protocol import (
    MESSAGES,
    METHODS,
    SERVICE,
    message_of_info,
    messages_of_mounts,
    pages,
)
from lazyfs.snapshotter.snapshotter import Snapshotter

_THREADS: Final = 128
_GRACE_S: Final = 5.0
_LONGEST_SOCKET_PATH: Final = 107  # unix(7)
_PRIVATE: Final = 0o177

# Each kind's status as containerd's errdefs reads it.
_STATUS: Final = {
    NoSnapshot: grpc.StatusCode.NOT_FOUND,
    SnapshotExists: grpc.StatusCode.ALREADY_EXISTS,
    SnapshotInUse: grpc.StatusCode.FAILED_PRECONDITION,
    BadSnapshotCall: grpc.StatusCode.INVALID_ARGUMENT,
    DiskRefused: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ChainAway: grpc.StatusCode.UNAVAILABLE,
}

_log = logging.getLogger(__name__)

Call = Callable[[Any], Awaitable[Any]]


@asynccontextmanager
async def serving(
    snapshotter: Snapshotter,
    socket: Path,
    counts: SnapshotterCounts | None = None,
    also: Iterable[grpc.GenericRpcHandler] = (),
) -> AsyncIterator[None]:
    """Serve a snapshotter on a unix socket that only our user can open.

    Args:
        snapshotter: answers.
        socket: where.
        counts: told of every call.
        also: other services there.

    Raises:
        ConfigError: the socket cannot be made.
    """
    service = _Service(snapshotter, trio.lowlevel.current_trio_token(), counts or SnapshotterCounts())
    pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="snapshotter")
    server = grpc.server(pool, handlers=[service, *also])
    async with listening(server, socket):
        yield


def address_of(socket: Path) -> str:
    """What gRPC calls a unix socket.

    Raises:
        ConfigError: its path is too long for one.
    """
    if len(os.fsencode(socket)) > _LONGEST_SOCKET_PATH:
        raise ConfigError(f"{socket}: a socket's path has at most {_LONGEST_SOCKET_PATH} bytes")
    return f"unix:{quote(os.fsencode(socket))}"


@asynccontextmanager
async def listening(server: grpc.Server, socket: Path) -> AsyncIterator[None]:
    """Have a server answer on a unix socket that only our user can open; what is under way may end.

    Raises:
        ConfigError: the socket cannot be made.
    """
    _bind(server, socket)
    server.start()
    try:
        yield
    finally:
        with trio.CancelScope(shield=True):
            stopped = server.stop(_GRACE_S)
            await trio.to_thread.run_sync(stopped.wait)


def _bind(server: grpc.Server, socket: Path) -> None:
    address = address_of(socket)
    before = os.umask(_PRIVATE)
    try:
        socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        server.add_insecure_port(address)
    except (OSError, RuntimeError) as error:
        why = error.strerror if isinstance(error, OSError) else None
        raise ConfigError(f"cannot listen on {socket}: {why or error}") from error
    finally:
        os.umask(before)


class _Service(grpc.GenericRpcHandler):
    """The methods by their names on the wire."""

    def __init__(
        self, snapshotter: Snapshotter, token: trio.lowlevel.TrioToken, counts: SnapshotterCounts
    ) -> None:
        calls = _Calls(snapshotter)
        self._counts = counts
        self._token = token
        self._handlers = {
            f"/{SERVICE}/{name}": self._handler(name, call) for name, call in calls.by_name().items()
        }

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """The handler for a method; None if there is no such method."""
        return self._handlers.get(handler_call_details.method)

    def _handler(self, name: str, call: Call) -> "grpc.RpcMethodHandler[Any, Any]":
        request, response = (MESSAGES[message] for message in METHODS[name])
        if name == "List":
            return grpc.unary_stream_rpc_method_handler(
                partial(self._stream, name, call),
                request_deserializer=request.FromString,
                response_serializer=response.SerializeToString,
            )
        return grpc.unary_unary_rpc_method_handler(
            partial(self._answer, name, call),
            request_deserializer=request.FromString,
            response_serializer=response.SerializeToString,
        )

    def _stream(self, name: str, call: Call, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        yield from pages(self._answer(name, call, request, context))

    def _answer(self, name: str, call: Call, request: Any, context: grpc.ServicerContext) -> Any:
        """What the snapshotter answers; else the call is aborted with the error's status."""
        began = time.perf_counter()
        status = grpc.StatusCode.OK
        try:
            return trio.from_thread.run(call, request, trio_token=self._token)
        except SnapshotError as error:
            _log.info("%s: %s", name, error)
            status = next(code for kind, code in _STATUS.items() if isinstance(error, kind))
            why = str(error)
        except (trio.RunFinishedError, trio.Cancelled):
            status, why = grpc.StatusCode.UNAVAILABLE, "the snapshotter is ending"
        except Exception as error:  # noqa: BLE001  # a bug fails one call, not the service
            _log.exception("a bug in %s", name)
            status, why = grpc.StatusCode.INTERNAL, f"a bug: {type(error).__name__}: {error}"
        finally:
            self._counts.called(name, status.name, time.perf_counter() - began)
        context.abort(status, why)
        raise AssertionError  # abort raises


class _Calls:
    """Requests to calls on the snapshotter, and its answers to responses."""

    def __init__(self, snapshotter: Snapshotter) -> None:
        self._snapshotter = snapshotter

    def by_name(self) -> Mapping[str, Call]:
        """Each method by its name."""
        return {name: getattr(self, f"_{name.lower()}") for name in METHODS}

    async def _prepare(self, request: Any) -> Any:
        mounts = await self._snapshotter.prepare(request.key, request.parent, dict(request.labels))
        return MESSAGES["PrepareSnapshotResponse"](mounts=messages_of_mounts(mounts))

    async def _view(self, request: Any) -> Any:
        mounts = await self._snapshotter.view(request.key, request.parent, dict(request.labels))
        return MESSAGES["ViewSnapshotResponse"](mounts=messages_of_mounts(mounts))

    async def _mounts(self, request: Any) -> Any:
        mounts = await self._snapshotter.mounts(request.key)
        return MESSAGES["MountsResponse"](mounts=messages_of_mounts(mounts))

    async def _commit(self, request: Any) -> Any:
        labels = dict(request.labels)
        await self._snapshotter.commit(request.name, request.key, request.parent, labels)
        return MESSAGES["Empty"]()

    async def _remove(self, request: Any) -> Any:
        await self._snapshotter.remove(request.key)
        return MESSAGES["Empty"]()

    async def _stat(self, request: Any) -> Any:
        info = await self._snapshotter.stat(request.key)
        return MESSAGES["StatSnapshotResponse"](info=message_of_info(info))

    async def _update(self, request: Any) -> Any:
        labels, paths = dict(request.info.labels), list(request.update_mask.paths)
        info = await self._snapshotter.update(request.info.name, labels, paths)
        return MESSAGES["UpdateSnapshotResponse"](info=message_of_info(info))

    async def _list(self, request: Any) -> Any:
        return await self._snapshotter.matching(list(request.filters))

    async def _usage(self, request: Any) -> Any:
        usage = await self._snapshotter.usage(request.key)
        return MESSAGES["UsageResponse"](size=usage.size, inodes=usage.inodes)

    async def _cleanup(self, request: Any) -> Any:
        del request
        await self._snapshotter.cleanup()
        return MESSAGES["Empty"]()
