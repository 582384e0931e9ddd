"""Single flight, among tasks and among processes."""

import fcntl
import math
from contextlib import nullcontext
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyfs.cache.cache import Cache
from lazyfs.cache.flight import Flights, FlightStatistics
from lazyfs.errors import CacheError
from tests.support.crash import child, lines
from tests.support.spans import LAYER, TOC


async def test_who_comes_meanwhile_shares_and_who_comes_after_starts_anew(nursery, autojump_clock) -> None:
    flights = Flights[int](nursery)
    begun = []

    async def work() -> int:
        begun.append(trio.current_time())
        number = len(begun)
        await trio.sleep(1)
        return number

    results = []

    async def want() -> None:
        results.append(await flights.run("key", work))

    for _ in range(5):
        nursery.start_soon(want)
    await trio.sleep(0.5)
    assert flights.statistics() == FlightStatistics(flying=1, waiting=5, flown=1, shared=4)
    assert repr(flights) == "<Flights, 1 flying>"
    assert await flights.run("another key", work) == 2
    assert results == [1] * 5
    assert await flights.run("key", work) == 3
    assert flights.statistics() == FlightStatistics(flying=0, waiting=0, flown=3, shared=4)


async def test_all_who_wait_get_the_same_error_with_the_place_it_came_from(nursery, autojump_clock) -> None:
    flights = Flights[None](nursery)

    async def fail_deep_inside() -> None:
        await trio.sleep(1)
        raise CacheError("broken")

    errors = []

    async def want() -> None:
        with pytest.raises(CacheError, match="broken") as caught:
            await flights.run("key", fail_deep_inside)
        errors.append(caught.value)
        names = [entry.name for entry in caught.traceback]
        assert names.count("fail_deep_inside") == 1
        assert names.count("want") == 1

    async with trio.open_nursery() as wanting:
        for _ in range(3):
            wanting.start_soon(want)
    assert len(errors) == 3
    assert len(set(map(id, errors))) == 1
    assert flights.statistics().flying == 0


async def test_the_first_caller_may_leave_the_others(nursery, autojump_clock) -> None:
    flights = Flights[str](nursery)

    async def work() -> str:
        await trio.sleep(2)
        return "done"

    async def leave_early() -> None:
        with trio.move_on_after(1) as scope:
            await flights.run("key", work)
        assert scope.cancelled_caught

    nursery.start_soon(leave_early)
    await trio.sleep(0.5)
    assert await flights.run("key", work) == "done"
    assert trio.current_time() == 2
    assert flights.statistics().flown == 1


async def test_work_that_nobody_waits_for_is_cancelled(nursery, autojump_clock) -> None:
    flights = Flights[None](nursery)
    ends = []

    async def work() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ends.append(trio.current_time())

    with trio.move_on_after(3):
        await flights.run("key", work)
    await trio.testing.wait_all_tasks_blocked()
    assert ends == [3]
    assert flights.statistics().flying == 0


async def test_who_comes_while_abandoned_work_winds_up_waits_and_begins_anew(nursery, autojump_clock) -> None:
    flights = Flights[str](nursery)
    flying = 0

    async def slow_to_leave() -> str:
        nonlocal flying
        flying += 1
        assert flying == 1
        try:
            await trio.sleep(5)
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(10)
            flying -= 1
        return "done"

    with trio.move_on_after(1):
        await flights.run("key", slow_to_leave)
    assert await flights.run("key", slow_to_leave) == "done"
    assert trio.current_time() == 1 + 10 + 15
    assert flights.statistics().flown == 2


async def test_abandoned_work_that_fails_while_winding_up_harms_nobody(nursery, autojump_clock) -> None:
    flights = Flights[str](nursery)
    attempts = []

    async def work() -> str:
        attempts.append(None)
        try:
            await trio.sleep(5)
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await trio.sleep(1)
            raise CacheError("cleaning up failed") from None
        return "done"

    with trio.move_on_after(1):
        await flights.run("key", work)
    assert await flights.run("key", work) == "done"
    assert len(attempts) == 2


async def test_abandoned_work_that_succeeds_after_all_is_used(nursery, autojump_clock) -> None:
    flights = Flights[str](nursery)

    async def work() -> str:
        with trio.CancelScope(shield=True):
            await trio.sleep(5)
        return "done"

    with trio.move_on_after(1):
        await flights.run("key", work)
    assert await flights.run("key", work) == "done"
    assert trio.current_time() == 5
    assert flights.statistics().flown == 1


async def test_when_the_nursery_ends_those_who_wait_are_told(autojump_clock) -> None:
    async def want(flights: Flights[None]) -> None:
        with pytest.raises(CacheError, match="shutting down"):
            await flights.run("key", trio.sleep_forever)

    async with trio.open_nursery() as outside:
        async with trio.open_nursery() as inside:
            flights = Flights[None](inside)
            outside.start_soon(want, flights)
            await trio.sleep(1)
            inside.cancel_scope.cancel()
        await want(flights)
    assert flights.statistics().flying == 0


@given(
    callers=st.lists(
        st.tuples(st.integers(0, 12), st.integers(1, 12) | st.just(math.inf), st.sampled_from("ab")),
        min_size=1,
        max_size=8,
    ),
    work_s=st.integers(0, 5),
    cleanup_s=st.integers(0, 3),
    fails=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_never_two_works_for_one_key_and_everyone_who_stays_is_served(
    callers, work_s, cleanup_s, fails
) -> None:
    """Callers come at one time and may leave at another, work takes its time, also to stop."""
    flying = dict.fromkeys("ab", 0)
    served = []

    def work_for(key: str):
        async def work() -> str:
            assert flying[key] == 0
            flying[key] += 1
            try:
                await trio.sleep(work_s)
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(cleanup_s)
                flying[key] -= 1
            if fails:
                raise CacheError(key)
            return key

        return work

    async def call(flights: Flights[str], start: int, patience: float, key: str) -> None:
        await trio.sleep(start)
        with trio.move_on_after(patience) as scope:
            with pytest.raises(CacheError, match=key) if fails else nullcontext():
                assert await flights.run(key, work_for(key)) == key
        served.append(key)
        assert not (scope.cancelled_caught and patience == math.inf)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            flights = Flights[str](nursery)
            async with trio.open_nursery() as calling:
                for caller in callers:
                    calling.start_soon(call, flights, *caller)
        assert flights.statistics().flying == flights.statistics().waiting == 0

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert len(served) == len(callers)
    assert flying == dict.fromkeys("ab", 0)


async def test_a_named_lock_is_held_by_one_task_at_a_time_and_leaves_no_file(
    tmp_path: Path, autojump_clock
) -> None:
    cache = Cache(tmp_path / "cache")
    inside = []

    async def work(number: int) -> None:
        async with cache.named_lock("layer-1"):
            inside.append(number)
            await trio.sleep(1)
            assert inside[-1] == number
            inside.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(work, number)
    assert inside[::2] == inside[1::2]
    assert list((tmp_path / "cache" / "locks").iterdir()) == []


async def test_a_lock_whose_file_its_last_holder_removes_is_taken_on_the_new_file(
    tmp_path: Path, autojump_clock, monkeypatch
) -> None:
    cache = Cache(tmp_path / "cache")
    path = cache.root / "locks" / "name"
    real = fcntl.flock
    removed = []

    def remove_meanwhile(descriptor: int, kind: int) -> None:
        if not removed:
            removed.append(path.unlink())
        real(descriptor, kind)

    monkeypatch.setattr(fcntl, "flock", remove_meanwhile)
    async with cache.named_lock("name"):
        assert removed
        with path.open() as file, pytest.raises(BlockingIOError):
            real(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


async def test_waiting_for_a_lock_can_be_cancelled(tmp_path: Path, autojump_clock) -> None:
    cache = Cache(tmp_path / "cache")
    with cache.layer(LAYER, TOC, 8192, 2) as entry, cache.layer(LAYER, TOC, 8192, 2) as other:
        async with cache.named_lock("name"), entry.span_lock(7):
            for lock in (cache.named_lock("name"), entry.span_lock(7), other.span_lock(7)):
                with trio.move_on_after(1) as scope:
                    async with lock:
                        raise AssertionError
                assert scope.cancelled_caught
            async with other.span_lock(6), cache.named_lock("another"):
                pass
        async with cache.named_lock("name"), other.span_lock(7):
            pass


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", ".hidden", "a\0b", "x" * 201, "\N{SNOWMAN}"])
async def test_names_of_locks_are_plain(tmp_path: Path, name: str) -> None:
    with pytest.raises(CacheError, match="plain name"):
        async with Cache(tmp_path / "cache").named_lock(name):
            pass


HOLDER = """
    import sys, trio
    from pathlib import Path
    from lazyfs.cache.cache import Cache

    async def main():
        cache = Cache(Path(sys.argv[1]))
        entry = cache.layer("sha256:" + "1" * 64, "sha256:" + "2" * 64, 8192, 2)
        async with cache.named_lock("name"), entry.span_lock(1):
            print("held")
            sys.stdin.readline()

    trio.run(main)
"""


async def test_the_kernel_frees_the_locks_of_the_dead(tmp_path: Path, autojump_clock) -> None:
    cache = Cache(tmp_path / "cache")
    with child(HOLDER, tmp_path / "cache") as process, cache.layer(LAYER, TOC, 8192, 2) as entry:
        assert lines(process, 1) == ["held"]
        for lock in (cache.named_lock("name"), entry.span_lock(1)):
            with trio.move_on_after(1) as scope:
                async with lock:
                    pass
            assert scope.cancelled_caught
        process.kill()
        process.wait()
        async with cache.named_lock("name"), entry.span_lock(1):
            pass


FETCHER = """
    import os, sys, trio
    from pathlib import Path
    from lazyfs.cache.cache import Cache
    from lazyfs.cache.flight import Flights

    async def main():
        entry = Cache(Path(sys.argv[1])).layer("sha256:" + "1" * 64, "sha256:" + "2" * 64, 64 * 4096, 64)
        log = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

        async def fetch(number):
            async with entry.span_lock(number):
                if not entry.has(number, number + 1):
                    os.write(log, b"%d\\n" % number)
                    await trio.sleep(0.001)
                    entry.put(number * 4096, number, bytes([number + 1]) * 4096)

        async def read(flights, number):
            await flights.run(number, lambda: fetch(number))
            assert entry.read(number * 4096, 4096) == bytes([number + 1]) * 4096

        print("ready")
        sys.stdin.readline()
        async with trio.open_nursery() as nursery:
            flights = Flights(nursery)
            async with trio.open_nursery() as readers:
                for number in list(range(64)) * 3:
                    readers.start_soon(read, flights, number)
        print("done")

    trio.run(main)
"""


def test_three_processes_fetch_each_span_once(tmp_path: Path) -> None:
    arguments = tmp_path / "cache", tmp_path / "log"
    with (
        child(FETCHER, *arguments) as first,
        child(FETCHER, *arguments) as second,
        child(FETCHER, *arguments) as third,
    ):
        processes = (first, second, third)
        for process in processes:
            assert lines(process, 1) == ["ready"]
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(b"\n")
            process.stdin.flush()
        for process in processes:
            assert lines(process, 1) == ["done"]
    assert sorted(map(int, (tmp_path / "log").read_text().split())) == list(range(64))
