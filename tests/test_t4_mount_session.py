"""The session's life, with a kernel that does what the real one does rarely."""

import errno
import os

import pytest
import trio

from lazyfs.errors import MountError
from lazyfs.mount.contents import Contents
from lazyfs.mount.fuse_mount import Connection
from lazyfs.mount.mounts import Mount
from lazyfs.mount.operations import TreeOperations
from lazyfs.mount.session import run_session
from tests.support.fake_kernel import FakeKernel
from tests.support.mount_server import FakeLayer, file, open_image, write_image

NOWHERE = Mount(0, 0, (0, 0), b"/", b"/no/such/place", frozenset(), b"fuse", b"")


class GatedLayer(FakeLayer):
    """Answers when the gate is open."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data, "remote")
        self.gate = trio.Event()

    async def read(self, start: int, size: int) -> bytes:
        await self.gate.wait()
        return await super().read(start, size)


@pytest.fixture
def kernel():
    kernel = FakeKernel()
    yield kernel
    kernel.close()


@pytest.fixture
def image(tmp_path):
    return write_image(tmp_path / "image", [[file(b"a", b"content")]])


@pytest.fixture
def layer(image):
    return GatedLayer((image / "layer0").read_bytes())


@pytest.fixture
def operations(image, layer):
    return TreeOperations(open_image(image), Contents([layer], 1000))


async def test_a_request_withdrawn_at_the_last_moment_stops_nobody(kernel, operations, layer, nursery):
    trio.lowlevel.add_instrument(kernel)
    await nursery.start(run_session, operations, Connection(kernel.device_fd, None), lambda: NOWHERE)
    assert kernel.init() == (await kernel.reply()).unique
    looked_up = kernel.look_up(b"a")
    found = await kernel.reply()
    assert (found.unique, found.error) == (looked_up, 0)
    reading = kernel.read(int.from_bytes(found.body[:8], "little"), 100)
    for _ in range(3):
        await trio.testing.wait_all_tasks_blocked()
        kernel.look_up(b"withdrawn", withdraw=True)
        await trio.testing.wait_all_tasks_blocked()
        looked_up = kernel.look_up(b"a")
        assert (await kernel.reply()) == found._replace(unique=looked_up)  # while the read still waits
    layer.gate.set()
    assert await kernel.reply() == (reading, 0, b"content")
    nursery.cancel_scope.cancel()


async def test_a_dead_connection_ends_the_session_though_reads_wait(kernel, operations, image):
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await nursery.start(run_session, operations, Connection(kernel.device_fd, None), lambda: NOWHERE)
            kernel.init()
            await kernel.reply()
            kernel.read(open_image(image).lookup(1, b"a"), 100)
            await trio.testing.wait_all_tasks_blocked()
            assert "1 reads under way" in repr(operations.contents)
            kernel.close()
    assert "0 reads under way" in repr(operations.contents)


async def test_what_cannot_be_mounted_ends_the_session(kernel, operations):
    def refuse() -> Mount:
        raise PermissionError(errno.EACCES, "not there")

    with pytest.raises(MountError, match=r"cannot mount: .*not there"):
        await run_session(operations, Connection(kernel.device_fd, None), refuse)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(kernel.device_fd)


@pytest.mark.expect_log("the FUSE session failed")
async def test_a_failure_of_pyfuse3_ends_the_session_in_order(kernel, operations, monkeypatch):
    async def lookup(*_arguments):
        raise ZeroDivisionError("not a FUSEError")

    errors = []

    async def run(task_status):
        connection = Connection(kernel.device_fd, None)
        try:
            await run_session(operations, connection, lambda: NOWHERE, task_status=task_status)
        except MountError as error:
            errors.append(str(error))

    monkeypatch.setattr(operations, "lookup", lookup)
    async with trio.open_nursery() as inner:
        await inner.start(run)
        kernel.init()
        await kernel.reply()
        kernel.look_up(b"a")
    assert errors == ["the FUSE session failed: ZeroDivisionError('not a FUSEError')"]
