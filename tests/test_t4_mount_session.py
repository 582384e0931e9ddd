"""The session's life, with a kernel that does what the real one does rarely: ours, and that of pyfuse3."""

import errno
import os

import pytest
import trio

from lazyfs.errors import MountError
from lazyfs.mount.answers import Negotiated
from lazyfs.mount.forest import Forest, VirtualFile
from lazyfs.mount.forest_answers import ForestAnswers
from lazyfs.mount.fuse_mount import Connection
from lazyfs.mount.layer_files import LayerFileOperations
from lazyfs.mount.mounts import Mount
from lazyfs.mount.pyfuse_session import PyfuseSession
from lazyfs.mount.raw_session import RawSession
from lazyfs.mount.requesters import is_killed
from lazyfs.mount.session import Session, run_session
from lazyfs.mount.wire import Opcode
from lazyfs.mount.wire_init import InitFlag
from tests.support import fuse_protocol as c
from tests.support.fake_kernel import FakeKernel
from tests.support.mount_server import FakeLayer

NOWHERE = Mount(0, 0, (0, 0), b"/", b"/no/such/place", frozenset(), b"fuse", b"")
CONTENT = b"content" * 100
NAME = b"2"
SETTLED = Negotiated(31, InitFlag.NO_OPEN_SUPPORT)


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
def layer():
    return GatedLayer(CONTENT)


@pytest.fixture
def forest(layer):
    forest = Forest()
    forest.add(VirtualFile(layer, len(CONTENT)))
    return forest


@pytest.fixture
def answers(forest):
    return ForestAnswers(forest, 1000)


@pytest.fixture(params=["raw", "pyfuse3"])
def session(request, kernel, forest, answers) -> Session:
    if request.param == "raw":
        return RawSession(kernel.device_fd, answers)
    return PyfuseSession(kernel.device_fd, LayerFileOperations(forest, 1000))


@pytest.fixture
async def raw(kernel, answers, nursery) -> RawSession:
    """A session that has begun."""
    raw = RawSession(kernel.device_fd, answers)
    nursery.start_soon(raw.answer)
    kernel.init()
    await kernel.reply()
    assert raw.initialised.is_set()
    yield raw
    raw.end()


def connection(kernel) -> Connection:
    return Connection(kernel.device_fd, None)


async def test_a_request_withdrawn_at_the_last_moment_stops_nobody(kernel, session, layer, nursery):
    trio.lowlevel.add_instrument(kernel)
    await nursery.start(run_session, session, connection(kernel), lambda: NOWHERE)
    assert kernel.init() == (await kernel.reply()).unique
    looked_up = kernel.look_up(NAME)
    found = await kernel.reply()
    assert (found.unique, found.error) == (looked_up, 0)
    reading = kernel.read(c.EntryOut.from_buffer_copy(found.body).nodeid, 100)
    for _ in range(3):
        await trio.testing.wait_all_tasks_blocked()
        kernel.look_up(b"withdrawn", withdraw=True)
        await trio.testing.wait_all_tasks_blocked()
        looked_up = kernel.look_up(NAME)
        assert (await kernel.reply()) == found._replace(unique=looked_up)  # while the read still waits
    layer.gate.set()
    assert await kernel.reply() == (reading, 0, CONTENT[:100])
    nursery.cancel_scope.cancel()


async def test_a_dead_connection_ends_the_session_though_reads_wait(kernel, session):
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await nursery.start(run_session, session, connection(kernel), lambda: NOWHERE)
            kernel.init()
            await kernel.reply()
            kernel.read(int(NAME), 100)
            await trio.testing.wait_all_tasks_blocked()
            assert not session.gone.is_set()
            kernel.close()
    assert session.gone.is_set()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(kernel.device_fd)


async def test_reads_that_wait_are_refused_at_the_end(kernel, session):
    async with trio.open_nursery() as nursery:
        await nursery.start(run_session, session, connection(kernel), lambda: NOWHERE)
        kernel.init()
        await kernel.reply()
        reading = kernel.read(int(NAME), 100)
        await trio.testing.wait_all_tasks_blocked()
        assert kernel.is_silent()
        nursery.cancel_scope.cancel()
    assert await kernel.reply() == (reading, errno.ENOTCONN, b"")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(kernel.device_fd)


async def test_what_cannot_be_mounted_ends_the_session(kernel, session):
    def refuse() -> Mount:
        raise PermissionError(errno.EACCES, "not there")

    with pytest.raises(MountError, match=r"cannot mount: .*not there"):
        await run_session(session, connection(kernel), refuse)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(kernel.device_fd)


@pytest.mark.expect_log("the FUSE session failed")
async def test_a_failure_of_pyfuse3_ends_the_session_in_order(kernel, forest, monkeypatch):
    async def lookup(*_arguments):
        raise ZeroDivisionError("not a FUSEError")

    operations = LayerFileOperations(forest, 1000)
    monkeypatch.setattr(operations, "lookup", lookup)
    session = PyfuseSession(kernel.device_fd, operations)
    assert (
        await failure_of(session, kernel) == "the FUSE session failed: ZeroDivisionError('not a FUSEError')"
    )


async def failure_of(session: Session, kernel: FakeKernel) -> str:
    """What a session says that fails at a look-up."""
    errors = []

    async def run(task_status):
        try:
            await run_session(session, connection(kernel), lambda: NOWHERE, task_status=task_status)
        except MountError as error:
            errors.append(str(error))

    async with trio.open_nursery() as nursery:
        await nursery.start(run)
        kernel.init()
        await kernel.reply()
        kernel.look_up(b"a")
    return errors[0]


@pytest.mark.expect_log("the FUSE session failed")
async def test_a_device_that_is_none_fails_the_session(answers, tmp_path):
    device_fd = os.open(tmp_path, os.O_RDONLY)
    session = RawSession(device_fd, answers)
    await session.answer()
    assert "Is a directory" in str(session.failure)
    os.close(device_fd)


async def test_a_session_ends_when_told_to_and_leaves_what_waits(kernel, raw):
    kernel.read(int(NAME), 100)
    await trio.testing.wait_all_tasks_blocked()
    assert "1 requests under way" in repr(raw)
    raw.end()
    await raw.gone.wait()
    kernel.look_up(NAME)
    await trio.testing.wait_all_tasks_blocked()
    assert kernel.is_silent()
    assert raw.failure is None


async def test_a_successor_has_what_waits_asked_again(kernel, raw, layer, forest, nursery):
    first = kernel.read(int(NAME), 100)
    await trio.testing.wait_all_tasks_blocked()
    raw.end()
    await raw.gone.wait()
    successor = RawSession(kernel.device_fd, ForestAnswers(forest, 1000), raw.negotiated)
    nursery.start_soon(successor.answer)
    assert await kernel.reply() == (0, -7, b"")  # FUSE_NOTIFY_RESEND
    layer.gate.set()
    again = first | 1 << 63
    kernel.send_bytes(c.message(Opcode.READ, again, int(NAME), c.read_body(0, 100)))
    assert await kernel.reply() == (again, 0, CONTENT[:100])
    assert successor.negotiated == raw.negotiated
    successor.end()


@pytest.mark.expect_log("this kernel does not repeat requests")
async def test_a_kernel_that_cannot_repeat_is_no_obstacle(answers, nursery):
    read_fd, write_fd = os.pipe()  # whose reading end takes no notification
    session = RawSession(read_fd, answers, SETTLED)
    nursery.start_soon(session.answer)
    await session.initialised.wait()
    os.close(write_fd)
    await session.gone.wait()
    os.close(read_fd)


@pytest.mark.expect_log("the kernel sent what cannot be read")
@pytest.mark.expect_log("a bug, while answering")
async def test_garbage_is_logged_and_stops_nobody(kernel, raw):
    kernel.send_bytes(b"garbage")
    kernel.send_bytes(c.message(Opcode.READ, 6, int(NAME), b"cut off"))
    assert await kernel.reply() == (6, errno.EIO, b"")
    kernel.send_bytes(c.message(Opcode.INTERRUPT, 8, 0, b"cut"))
    assert await kernel.reply() == (8, errno.EIO, b"")
    looked_up = kernel.look_up(NAME)
    assert (await kernel.reply()).unique == looked_up


@pytest.mark.expect_log("the kernel does not take an answer of")
async def test_an_answer_that_is_not_taken_becomes_an_error(kernel, raw, forest):
    size = 1 << 24  # no message over a socket is that long
    number = forest.add(VirtualFile(FakeLayer(bytes(size), "local"), size))
    reading = kernel.read(number, size)
    assert await kernel.reply() == (reading, errno.EIO, b"")


async def test_an_answer_that_nobody_waits_for_is_dropped(kernel, raw, layer):
    kernel.read(int(NAME), 100)
    await trio.testing.wait_all_tasks_blocked()
    raw.end()
    layer.gate.set()
    await raw.gone.wait()
    assert kernel.is_silent()


async def test_a_signal_that_does_not_kill_leaves_a_read_alone(kernel, raw, layer, autojump_clock):
    reading = kernel.read(int(NAME), 100, pid=os.getpid())
    for _ in range(2):
        kernel.send(Opcode.INTERRUPT, 0, bytes(c.InterruptIn(reading)))
    kernel.send(Opcode.INTERRUPT, 0, bytes(c.InterruptIn(12345)))
    await trio.sleep(10)
    assert kernel.is_silent()
    layer.gate.set()
    assert await kernel.reply() == (reading, 0, CONTENT[:100])


def test_a_thread_that_cannot_be_seen_or_is_well_is_not_killed():
    assert not is_killed(0)
    assert not is_killed(os.getpid())
