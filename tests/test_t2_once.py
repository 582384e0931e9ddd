"""Answers that are asked for once, however many want them."""

import pytest
import trio
from trio.testing import MockClock

from lazyfs.errors import LazyfsError, NotFound, Unreachable
from lazyfs.source.once import Once

WAITERS = 20


class Somebody:
    """Answers after a second, and counts."""

    def __init__(self, error: LazyfsError | None = None) -> None:
        self.asked = 0
        self.error = error

    async def __call__(self) -> str:
        self.asked += 1
        await trio.sleep(1)
        if self.error is not None:
            raise self.error
        return "answer"


async def told(once: Once[str]) -> list[str]:
    """What all are told who want to know at once."""
    answers = []

    async def want() -> None:
        try:
            answers.append(await once.get())
        except LazyfsError as error:
            answers.append(type(error).__name__)

    async with trio.open_nursery() as nursery:
        for _ in range(WAITERS):
            nursery.start_soon(want)
    return answers


@pytest.mark.parametrize("error", [None, NotFound("no"), Unreachable("down")])
async def test_all_who_want_to_know_at_once_cost_one_question(
    error: LazyfsError | None, autojump_clock: MockClock
) -> None:
    somebody = Somebody(error)
    expected = type(error).__name__ if error else "answer"
    assert await told(Once(somebody)) == [expected] * WAITERS
    assert somebody.asked == 1


async def test_that_nobody_was_reached_does_not_hold_for_ever(autojump_clock: MockClock) -> None:
    somebody = Somebody(Unreachable("down"))
    once = Once(somebody)
    await told(once)
    somebody.error = None
    await trio.sleep(9)
    assert await told(once) == ["Unreachable"] * WAITERS
    await trio.sleep(1)
    assert await told(once) == ["answer"] * WAITERS
    assert somebody.asked == 2


async def test_another_error_stays_the_answer(autojump_clock: MockClock) -> None:
    somebody = Somebody(Unreachable("down"))
    once = Once(somebody)
    await told(once)
    await trio.sleep(10)
    somebody.error = NotFound("no")
    assert await told(once) == ["NotFound"] * WAITERS
    assert somebody.asked == 2
    somebody.error = None
    await trio.sleep(3600)
    assert await told(once) == ["NotFound"] * WAITERS


async def test_who_asks_may_go_and_the_next_asks_again(autojump_clock: MockClock) -> None:
    somebody = Somebody()
    once = Once(somebody)
    with trio.move_on_after(0.5):
        await once.get()
    assert await once.get() == "answer"
    assert somebody.asked == 2
