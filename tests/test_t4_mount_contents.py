"""Reads of layers: one deadline, one answer to the kernel's two questions, and how they end."""

import errno

import pytest
import trio

from lazyfs.errors import Unreachable
from lazyfs.mount.contents import Contents
from lazyfs.mount.errors import Refused
from lazyfs.mount.failed_reads import AGAIN_S, FailedReads


class CountingLayer:
    """Fails, or stalls, and counts how often it was asked."""

    def __init__(self, *, stalls: bool = False) -> None:
        self.asked = 0
        self.stalls = stalls
        self.local = b""

    def read_nowait(self, start: int, size: int) -> bytes | None:
        return self.local[start : start + size] or None

    async def read(self, start: int, size: int) -> bytes:
        self.asked += 1
        if self.stalls:
            await trio.sleep_forever()
        raise Unreachable("no route")


async def outcome(contents: Contents, start: int, size: int = 10) -> str:
    try:
        await contents.read(0, start, size)
    except Refused as error:
        return errno.errorcode[error.errno]
    except (Unreachable, trio.TooSlowError, RuntimeError) as error:
        return type(error).__name__
    return "read"


async def test_the_kernels_second_question_gets_the_first_ones_answer(autojump_clock):
    layer = CountingLayer()
    contents = Contents([layer], 10)
    assert await outcome(contents, 4096, 8192) == "Unreachable"
    assert await outcome(contents, 4096) == "EIO"
    assert await outcome(contents, 12_287) == "EIO"
    assert layer.asked == 1
    assert await outcome(contents, 12_288) == "Unreachable"
    assert await outcome(contents, 4095) == "Unreachable"
    assert layer.asked == 3
    layer.local = bytes(20_000)
    assert await outcome(contents, 4096) == "read"


async def test_a_stalled_read_costs_one_deadline(autojump_clock):
    layer = CountingLayer(stalls=True)
    contents = Contents([layer], 10)
    began = trio.current_time()
    assert await outcome(contents, 0) == "TooSlowError"
    assert await outcome(contents, 0) == "ETIMEDOUT"
    assert trio.current_time() - began == 10


async def test_a_failed_read_is_tried_again_after_a_while(autojump_clock):
    layer = CountingLayer()
    contents = Contents([layer], 10)
    for _ in range(3):
        assert await outcome(contents, 0) == "Unreachable"
        assert await outcome(contents, 0) == "EIO"
        await trio.sleep(AGAIN_S)
    assert layer.asked == 3


async def test_failures_are_few(autojump_clock):
    failed = FailedReads()
    for number in range(1000):
        failed.add(0, number * 10, 10, errno.EIO)
    assert failed.errno(0, 9995) == errno.EIO
    assert failed.errno(0, 5) is None
    assert repr(failed) == "<FailedReads 64>"


async def test_reads_end_when_told_to_and_hits_go_on(autojump_clock, nursery):
    layer = CountingLayer(stalls=True)
    contents = Contents([layer], 1000)
    answers = []

    async def note():
        answers.append(await outcome(contents, 0))

    for _ in range(3):
        nursery.start_soon(note)
    await trio.testing.wait_all_tasks_blocked()
    assert repr(contents) == "<Contents of 1 layers, 3 reads under way>"
    contents.refuse()
    await trio.testing.wait_all_tasks_blocked()
    assert answers == ["ENOTCONN"] * 3
    assert await outcome(contents, 50) == "ENOTCONN"
    assert layer.asked == 3
    layer.local = bytes(100)
    assert await outcome(contents, 50) == "read"


@pytest.mark.parametrize("delivered", [b"", b"123456789", b"12345678901"])
async def test_a_layer_that_gives_another_length_is_a_bug(delivered):
    class WrongLayer(CountingLayer):
        async def read(self, start: int, size: int) -> bytes:
            return delivered

    assert await outcome(Contents([WrongLayer()], 10), 0) == "RuntimeError"


@pytest.mark.parametrize("outlast_tasks", [False, True])
async def test_a_read_outlasts_its_task_where_that_is_wanted_until_let_go(
    autojump_clock, nursery, outlast_tasks
):
    contents = Contents([CountingLayer(stalls=True)], 1000, outlast_tasks=outlast_tasks)
    nursery.start_soon(contents.read, 0, 0, 1)
    await trio.testing.wait_all_tasks_blocked()
    nursery.cancel_scope.cancel()
    with trio.CancelScope(shield=True):
        await trio.sleep(900)
        assert f"{int(outlast_tasks)} reads under way" in repr(contents)
        contents.let_go()
        await trio.testing.wait_all_tasks_blocked()
        assert "0 reads under way" in repr(contents)
