"""Locks between tasks and processes: one at a time, cancellable, freed by the kernel."""

import fcntl
from pathlib import Path

import pytest
import trio

from lazyfs.cache.cache import Cache
from lazyfs.errors import CacheError
from tests.support.crash import child, lines
from tests.support.spans import LAYER, TOC


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

    async def main():
        entry = Cache(Path(sys.argv[1])).layer("sha256:" + "1" * 64, "sha256:" + "2" * 64, 64 * 4096, 64)
        log = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

        async def fetch(number):
            async with entry.span_lock(number):
                if not entry.has(number, number + 1):
                    os.write(log, b"%d\\n" % number)
                    await trio.sleep(0.001)
                    entry.put(number * 4096, number, bytes([number + 1]) * 4096)

        async def read(number):
            await fetch(number)
            assert entry.read(number * 4096, 4096) == bytes([number + 1]) * 4096

        print("ready")
        sys.stdin.readline()
        async with trio.open_nursery() as readers:
            for number in list(range(64)) * 3:
                readers.start_soon(read, number)
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
