"""The image service handed on to a containerd that does as it is told: deadlines, errors, clients that go."""

import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
import trio
import trio.testing

from lazyfs.errors import ConfigError
from lazyfs.snapshotter import image_service
from lazyfs.snapshotter.image_service import Entry, serving_images

SERVICE = "/runtime.v1.ImageService/"
PULL = b"\x0a\x05\x0a\x03a/b\x12\x06\x0a\x01u\x12\x01p"
"""Of the image a/b by the user u with the password p."""
IMAGE = "a/b"
LONG = "long " * 5000
PATIENCE_S = 30.0
ANY_METADATA = [("grpc.max_metadata_size", 1 << 20), ("grpc.absolute_max_metadata_size", 1 << 20)]

Behaviour = Callable[[bytes, grpc.ServicerContext], bytes]


class ContainerdDouble(grpc.GenericRpcHandler):
    """Answers each call by what the test has set for its method.

    Attributes:
        behaviours: by the name of the method.
    """

    def __init__(self) -> None:
        self.behaviours: dict[str, Behaviour] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[Any, Any]":
        method = handler_call_details.method.removeprefix(SERVICE)
        return grpc.unary_unary_rpc_method_handler(self.behaviours[method])


class GateDouble:
    """Notes what it is told.

    Attributes:
        told: "in" and "out", in order.
        open: whether it answers; it does.
        asked: set once it was asked.
    """

    def __init__(self) -> None:
        self.told: list[str] = []
        self.open = trio.Event()
        self.open.set()
        self.asked = threading.Event()

    async def log_in(self, image: str, entry: Entry, *, proved: bool = False) -> bool:
        assert (image, entry) == (IMAGE, {"username": "u", "password": "p"})
        self.asked.set()
        await self.open.wait()
        self.told.append("in")
        return True

    async def log_out(self, image: str, entry: Mapping[str, str]) -> None:
        assert (image, entry) == (IMAGE, {"username": "u", "password": "p"})
        self.told.append("out")


@pytest.fixture
def containerd(tmp_path: Path) -> Iterator[ContainerdDouble]:
    double = ContainerdDouble()
    server = grpc.server(ThreadPoolExecutor(4), handlers=[double])
    server.add_insecure_port(f"unix:{tmp_path}/containerd")
    server.start()
    yield double
    server.stop(None).wait()


@pytest.fixture
def gate() -> GateDouble:
    return GateDouble()


@pytest.fixture
async def channel(
    containerd: ContainerdDouble, gate: GateDouble, tmp_path: Path
) -> AsyncIterator[grpc.Channel]:
    del containerd
    with grpc.insecure_channel(f"unix:{tmp_path}/images", options=ANY_METADATA) as channel:
        async with serving_images(tmp_path / "images", tmp_path / "containerd", gate):
            yield channel


async def ask(channel: grpc.Channel, method: str, request: bytes = b"") -> bytes:
    """The answer to a call without a deadline, as the kubelet's pulls are."""
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(SERVICE + method)
    return await trio.to_thread.run_sync(partial(call, request, wait_for_ready=True))


def begin_pull(channel: grpc.Channel) -> "grpc.Future[bytes]":
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(SERVICE + "PullImage")
    return call.future(PULL, wait_for_ready=True)


async def wait(event: threading.Event) -> None:
    assert await trio.to_thread.run_sync(event.wait, PATIENCE_S)


async def test_a_call_without_a_deadline_has_none(
    channel: grpc.Channel, containerd: ContainerdDouble, gate: GateDouble
) -> None:
    containerd.behaviours["PullImage"] = lambda request, _: request
    assert await ask(channel, "PullImage", PULL) == PULL
    assert gate.told == ["in", "in"]


@pytest.mark.expect_log("a/b: it has not answered within 0 s")
async def test_a_pull_goes_on_without_a_daemon_that_hangs(
    channel: grpc.Channel, containerd: ContainerdDouble, gate: GateDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_service, "_TELL_S", 0.0)
    gate.open = trio.Event()
    containerd.behaviours["PullImage"] = lambda request, _: request
    assert await ask(channel, "PullImage", PULL) == PULL
    assert gate.told == []


async def test_long_errors_pass(channel: grpc.Channel, containerd: ContainerdDouble) -> None:
    def refuse(_: bytes, context: grpc.ServicerContext) -> bytes:
        context.set_trailing_metadata((("grpc-status-details-bin", LONG.encode()),))
        context.abort(grpc.StatusCode.NOT_FOUND, LONG)
        raise AssertionError

    containerd.behaviours["PullImage"] = refuse
    with pytest.raises(grpc.RpcError) as caught:
        await ask(channel, "PullImage", PULL)
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.NOT_FOUND, LONG)
    trailing: Any = caught.value.trailing_metadata()
    assert ("grpc-status-details-bin", LONG.encode()) in trailing


async def test_who_goes_ends_the_pull(
    channel: grpc.Channel, containerd: ContainerdDouble, gate: GateDouble
) -> None:
    begun, ended = threading.Event(), threading.Event()

    def hang(_: bytes, context: grpc.ServicerContext) -> bytes:
        context.add_callback(ended.set)
        begun.set()
        assert ended.wait(PATIENCE_S)
        return b""

    containerd.behaviours["PullImage"] = hang
    call = begin_pull(channel)
    await wait(begun)
    call.cancel()
    await wait(ended)
    while gate.told != ["in", "out"]:
        await trio.testing.wait_all_tasks_blocked(0.01)


async def test_who_went_before_the_pull_began_has_none(
    channel: grpc.Channel, containerd: ContainerdDouble, gate: GateDouble
) -> None:
    gone = threading.Event()

    def hang(_: bytes, context: grpc.ServicerContext) -> bytes:
        if context.add_callback(gone.set):
            gone.wait(PATIENCE_S)
        return b""

    containerd.behaviours |= {"PullImage": hang, "ImageStatus": lambda *_: b"x"}
    gate.open = trio.Event()
    call = begin_pull(channel)
    await wait(gate.asked)
    call.cancel()
    assert await ask(channel, "ImageStatus") == b"x"  # sent later, so that the server knows of the first
    gate.open.set()
    with trio.fail_after(PATIENCE_S / 2):
        while gate.told != ["in", "out"]:
            await trio.testing.wait_all_tasks_blocked(0.01)


@pytest.mark.parametrize("method", ["PullImage", "ImageStatus"])
async def test_who_goes_without_a_word_is_not_logged(
    channel: grpc.Channel, containerd: ContainerdDouble, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    # Its going may be heard of before its saying nothing, or after: then the call is handed on.
    containerd.behaviours |= dict.fromkeys(("PullImage", "ImageStatus"), lambda *_: b"x")
    silent = threading.Event()

    def nothing() -> Iterator[bytes]:
        silent.wait(PATIENCE_S)
        yield from ()

    begin: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(SERVICE + method)
    call = begin(nothing(), wait_for_ready=True)
    assert await ask(channel, "ImageStatus") == b"x"
    call.cancel()
    silent.set()
    assert await ask(channel, "ImageStatus") == b"x"
    assert caplog.records == []


async def test_a_socket_is_where_it_is_said(gate: GateDouble, tmp_path: Path) -> None:
    async with serving_images(tmp_path / "a%20b", tmp_path / "containerd", gate):
        assert (tmp_path / "a%20b").is_socket()


async def test_a_path_of_containerd_that_is_too_long_is_said_at_once(
    gate: GateDouble, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="at most 107 bytes"):
        async with serving_images(tmp_path / "images", tmp_path / ("x" * 108), gate):
            pass
