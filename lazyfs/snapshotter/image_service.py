"""The CRI image service, handed on to containerd: credentials of pulls reach the daemon on the way.

containerd does not tell snapshotters who pulls. The kubelet does, with each PullImage, where it is told to
ask us for images (`imageServiceEndpoint`). Messages pass as they are, so that the methods and fields of other
releases pass too; of a pull's request, image and AuthConfig are read (cri-api `api.proto`, v1 and v1alpha2).
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import grpc
import trio
from google.protobuf.message import DecodeError

from lazyfs.errors import LazyfsError
from lazyfs.snapshotter.messages import message_classes
from lazyfs.snapshotter.server import address_of, listening

SERVICES: Final = ("runtime.v1.ImageService", "runtime.v1alpha2.ImageService")

_PULL: Final = "PullImage"
_THREADS: Final = 64  # one for a call under way; more calls wait
_LARGEST: Final = 16 << 20  # as containerd's and the kubelet's own
_TELL_S: Final = 5.0
_RECONNECT_MS: Final = (100, 1000)
_FOREVER_S: Final = 1e9  # what gRPC gives for no deadline is longer, and it takes that for one in the past

_MESSAGES: Final = message_classes(
    "runtime.v1",
    {
        "PullImageRequest": {"image": (1, "ImageSpec"), "auth": (2, "AuthConfig")},
        "ImageSpec": {"image": (1, "string")},
        "AuthConfig": {
            "username": (1, "string"),
            "password": (2, "string"),
            "auth": (3, "string"),
            "server_address": (4, "string"),
            "identity_token": (5, "string"),
            "registry_token": (6, "string"),
        },
    },
)

_log = logging.getLogger(__name__)

Entry = Mapping[str, str]
"""Credentials, with the names of an entry of `auths` in Docker's `config.json`."""


class Gate(Protocol):
    """Who needs the credentials of pulls. Both may raise LazyfsError."""

    async def log_in(self, image: str, entry: Entry, *, proved: bool = False) -> bool:
        """Give them, before a pull or, `proved`, after it; whether they are new there."""

    async def log_out(self, image: str, entry: Entry) -> None:
        """Take them back."""


class Pull(NamedTuple):
    """Who pulls what.

    Attributes:
        image: the image's name.
        entry: the credentials; without any, it is empty.
    """

    image: str
    entry: Entry


def read_pull(data: bytes) -> Pull:
    """What a PullImageRequest says.

    Raises:
        DecodeError: it is none.
    """
    request = _MESSAGES["PullImageRequest"].FromString(data)
    auth = request.auth
    told = {
        "username": auth.username,
        "password": auth.password,
        "auth": auth.auth,
        "serveraddress": auth.server_address,
        "identitytoken": auth.identity_token,
        "registrytoken": auth.registry_token,
    }
    return Pull(request.image.image, {name: value for name, value in told.items() if value})


@asynccontextmanager
async def serving_images(socket: Path, containerd: Path, gate: Gate) -> AsyncIterator[None]:
    """Serve containerd's image service on a unix socket that only our user can open.

    Args:
        socket: where.
        containerd: containerd's own socket.
        gate: is told of credentials before a pull begins.

    Raises:
        ConfigError: the socket cannot be made, or there can be none for containerd.
    """
    sizes = [("grpc.max_receive_message_length", _LARGEST), ("grpc.max_send_message_length", _LARGEST)]
    sizes += [("grpc.max_metadata_size", _LARGEST), ("grpc.absolute_max_metadata_size", _LARGEST)]
    first_ms, longest_ms = _RECONNECT_MS
    pauses = [("grpc.initial_reconnect_backoff_ms", first_ms), ("grpc.max_reconnect_backoff_ms", longest_ms)]
    with grpc.insecure_channel(address_of(containerd), options=[*sizes, *pauses]) as channel:
        server = grpc.server(
            ThreadPoolExecutor(_THREADS, thread_name_prefix="images"),
            handlers=[_HandedOn(channel, gate, trio.lowlevel.current_trio_token())],
            options=sizes,
        )
        async with listening(server, socket):
            yield


class _HandedOn(grpc.GenericRpcHandler):
    """Every method of the service. One request and one answer look on the wire like streams of one."""

    def __init__(self, channel: grpc.Channel, gate: Gate, token: trio.lowlevel.TrioToken) -> None:
        self._channel = channel
        self._gate = gate
        self._token = token

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """The handler for a method; None if it is not of the service."""
        path = handler_call_details.method
        service, _, method = path.removeprefix("/").partition("/")
        if service not in SERVICES:
            return None
        behaviour = self._pull if method == _PULL else self._hand_on
        return grpc.stream_stream_rpc_method_handler(partial(behaviour, path))

    def _hand_on(
        self, path: str, requests: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        """What containerd answers; else the call is aborted as containerd's was."""
        metadata = tuple(pair for pair in context.invocation_metadata() if not _is_transports(pair[0]))
        ask: grpc.StreamStreamMultiCallable[bytes, bytes] = self._channel.stream_stream(path)
        if not context.is_active():
            return  # who asked has gone while the call waited for us
        left_s = context.time_remaining()
        timeout_s = left_s if left_s is not None and left_s < _FOREVER_S else None
        call = ask(_while_there(requests), timeout=timeout_s, metadata=metadata)

        def give_up() -> None:
            call.cancel()

        if not context.add_callback(give_up):
            give_up()
        try:
            yield from call
        except grpc.RpcError:
            context.set_trailing_metadata(call.trailing_metadata() or ())
            context.abort(call.code(), call.details() or "")

    def _pull(self, path: str, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        request = next(requests, b"")
        pull = _read(request)
        is_new = self._tell(self._gate.log_in, pull) if pull.entry else None
        has_come = False
        try:
            for answer in self._hand_on(path, chain([request], requests), context):
                has_come = True
                yield answer
        finally:
            if has_come and pull.entry:  # again: another pull by them may have failed meanwhile
                self._tell(partial(self._gate.log_in, proved=True), pull)
            elif is_new:
                self._tell(self._gate.log_out, pull)

    def _tell(self, what: Callable[[str, Entry], Awaitable[bool | None]], pull: Pull) -> bool | None:
        """What the daemon says; None if it cannot be told. A pull goes on without it."""

        async def tell() -> bool:
            with trio.fail_after(_TELL_S):
                return bool(await what(pull.image, pull.entry))

        try:
            return trio.from_thread.run(tell, trio_token=self._token)
        except trio.TooSlowError:
            why = f"it has not answered within {_TELL_S:g} s"
        except LazyfsError as error:
            why = str(error)
        except (trio.RunFinishedError, trio.Cancelled):
            return None
        _log.warning("the daemon does not know who pulls %s: %s", pull.image, why)
        return None


def _read(request: bytes) -> Pull:
    try:
        return read_pull(request)
    except DecodeError:  # containerd says what is wrong with it
        return Pull("", {})


def _while_there(requests: Iterator[bytes]) -> Iterator[bytes]:
    """A client's requests, up to where it went away: the call is cancelled then, and that is no mistake."""
    with suppress(grpc.RpcError):
        yield from requests


def _is_transports(name: str) -> bool:
    """Whether metadata of this name are gRPC's own, made anew for each connection."""
    return name.startswith((":", "grpc-")) or name in {"user-agent", "content-type", "te"}
