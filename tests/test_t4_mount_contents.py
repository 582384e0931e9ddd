"""Reads of layers: one deadline, one answer to the kernel's two questions, and how they end."""

import errno

import pytest
import trio

from lazyfs.errors import Unreachable
from lazyfs.mount.contents import Contents
from lazyfs.mount.errors import Refused
from lazyfs.mount.failed_reads import AGAIN_S, FailedReads
from lazyfs.mount.partial_reads import PATIENCE_S

PAGE = 4096


class CountingLayer:
    """Fails, or stalls, and counts how often it was asked."""

    def __init__(self, *, stalls: bool = False) -> None:
        self.asked = 0
        self.stalls = stalls
        self.local = b""

    def read_nowait(self, start: int, size: int) -> bytes | None:
        return self.local[start : start + size] or None

    def has_some(self, start: int, size: int) -> bool:
        return False

    async def read(self, start: int, size: int) -> bytes:
        self.asked += 1
        if self.stalls:
            await trio.sleep_forever()
        raise Unreachable("no route")


async def outcome(contents: Contents, start: int, size: int = 10, *, whole: bool = False) -> str:
    try:
        if contents.read_nowait(0, start, size) is None:
            await contents.wait(0, start, size, whole=whole)
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


class PartlyLocal(CountingLayer):
    """Three of eight pages are local; the others come once they are allowed to."""

    def __init__(self) -> None:
        super().__init__()
        self.comes = trio.Event()

    def read_nowait(self, start: int, size: int) -> bytes | None:
        return bytes(size) if start // PAGE % 8 < 3 and size <= PAGE else None

    def has_some(self, start: int, size: int) -> bool:
        return any(page % 8 < 3 for page in range(start // PAGE, (start + size) // PAGE))

    async def read(self, start: int, size: int) -> bytes:
        self.asked += 1
        await self.comes.wait()
        return bytes(size)


async def timed(contents: Contents, start: int, size: int, *, whole: bool = False) -> tuple[str, float]:
    began = trio.current_time()
    return await outcome(contents, start, size, whole=whole), trio.current_time() - began


async def test_who_wants_a_page_that_is_here_does_not_wait_for_its_neighbours(autojump_clock):
    layer = PartlyLocal()
    contents = Contents([layer], 60)
    assert await timed(contents, 0, 8 * PAGE) == ("EIO", PATIENCE_S)
    assert await timed(contents, 2 * PAGE, PAGE) == ("read", 0)
    # Nothing has come since: no other read of this kind waits at all, or asks for anything.
    assert await timed(contents, 8 * PAGE, 9 * PAGE) == ("EIO", 0)
    assert layer.asked == 1


async def test_a_page_that_is_not_here_is_waited_for_all_the_same(autojump_clock, nursery):
    layer = PartlyLocal()
    contents = Contents([layer], 60)
    assert await timed(contents, 0, 8 * PAGE) == ("EIO", PATIENCE_S)
    nursery.start_soon(_allow, layer, 30)
    assert await timed(contents, 4 * PAGE, PAGE) == ("read", 30)
    assert await timed(contents, 8 * PAGE, 9 * PAGE) == ("read", 0)  # it answers again


async def _allow(layer: PartlyLocal, after_s: float) -> None:
    await trio.sleep(after_s)
    layer.comes.set()


async def test_what_comes_soon_is_waited_for(autojump_clock, nursery):
    layer = PartlyLocal()
    contents = Contents([layer], 60)
    nursery.start_soon(_allow, layer, PATIENCE_S / 2)
    assert await timed(contents, 0, 8 * PAGE) == ("read", PATIENCE_S / 2)


@pytest.mark.parametrize(
    ("start", "size", "whole"),
    [(3 * PAGE, 5 * PAGE, False), (3 * PAGE, PAGE, False), (0, 8 * PAGE, True)],
)
async def test_other_reads_wait_as_long_as_reads_may(autojump_clock, start, size, whole):
    """Where nothing is here, where a single page is asked for, and where who asks wants all of it."""
    assert await timed(Contents([PartlyLocal()], 60), start, size, whole=whole) == ("TooSlowError", 60)


async def test_a_read_that_is_asked_for_again_as_it_is_waits(autojump_clock):
    contents = Contents([PartlyLocal()], 60)
    assert await timed(contents, 0, 8 * PAGE) == ("EIO", PATIENCE_S)
    assert await timed(contents, 0, 8 * PAGE) == ("TooSlowError", 60)


async def test_no_layer_waits_less_because_of_another(autojump_clock):
    contents = Contents([PartlyLocal(), PartlyLocal()], 60)
    assert await timed(contents, 0, 8 * PAGE) == ("EIO", PATIENCE_S)
    with pytest.raises(Refused), trio.fail_after(PATIENCE_S + 1):
        await contents.wait(1, 0, 8 * PAGE)
    assert trio.current_time() >= 2 * PATIENCE_S


async def test_an_impatient_mount_is_no_more_patient_with_part_of_a_read(autojump_clock):
    assert await timed(Contents([PartlyLocal()], 1), 0, 8 * PAGE) == ("TooSlowError", 1)


@pytest.mark.parametrize("outlast_tasks", [False, True])
async def test_such_reads_leave_nothing_under_way(autojump_clock, outlast_tasks):
    contents = Contents([PartlyLocal()], 60, outlast_tasks=outlast_tasks)
    assert await timed(contents, 0, 8 * PAGE) == ("EIO", PATIENCE_S)
    assert "0 reads under way" in repr(contents)


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
