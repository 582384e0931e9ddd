"""Whoever has a lock may be stopped, or hang: who waits says for whom, and does so for a while only."""

import fcntl
import os
from pathlib import Path
from typing import Any

import pytest
import trio

from lazyfs.cache.cache import Cache
from lazyfs.cache.entry_files import Geometry
from lazyfs.errors import CacheBusy
from lazyfs.exit_codes import exit_code
from lazyfs.flock import Holder, LockWait, directory_locked, holder_of
from tests.support.crash import lock_held, stop
from tests.support.spans import LAYER, TOC


class Steps:
    """A clock that goes on by half a second each time it is asked."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.5
        return self.now


def wait(path: Path, limit_s: float = 30.0) -> tuple[float, TimeoutError]:
    """After how many seconds a wait ended, and how."""
    clock = Steps()
    waiting = LockWait(path, limit_s, clock)
    try:
        while clock.now < 1000:
            waiting.go_on()
    except TimeoutError as error:
        return clock.now, error
    raise AssertionError


@pytest.mark.parametrize("kind", ["LOCK_EX", "LOCK_SH"])
def test_who_has_a_lock_is_known_and_whether_it_is_stopped(tmp_path: Path, kind: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    assert holder_of(tmp_path) is None
    with lock_held(tmp_path, kind, stopped=False) as process:
        assert holder_of(tmp_path / "link") == Holder(process.pid, stopped=False)
        stop(process.pid)
        assert holder_of(tmp_path) == Holder(process.pid, stopped=True)
    assert holder_of(tmp_path) is None


@pytest.mark.expect_log(
    r"waiting for a lock on /.*: it is held by process \d+, which is stopped: `kill -CONT"
)
def test_a_stopped_process_is_named_soon_and_not_waited_for_long(tmp_path: Path, caplog: Any) -> None:
    with lock_held(tmp_path) as process:
        ended_s, error = wait(tmp_path)
    assert ended_s <= 12
    assert f"by process {process.pid}, which is stopped: `kill -CONT {process.pid}`" in str(error)
    assert len(caplog.records) == 1
    assert exit_code(error) == 75


@pytest.mark.expect_log(r"it is held by process \d+: `kill \d+` ends it if it hangs")
def test_one_that_runs_is_waited_for_longer(tmp_path: Path, caplog: Any) -> None:
    with lock_held(tmp_path, stopped=False):
        ended_s, _ = wait(tmp_path, 100)
    assert 100 <= ended_s <= 102
    assert len(caplog.records) == 1


def test_we_ourselves_are_nobody_to_tell_of(tmp_path: Path, caplog: Any) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    wait(tmp_path)
    os.close(descriptor)
    assert not caplog.records


def test_a_directory_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    with (
        lock_held(tmp_path, stopped=False),
        pytest.raises(TimeoutError),
        directory_locked(tmp_path, limit_s=0),
    ):
        raise AssertionError
    with directory_locked(tmp_path, limit_s=0):
        pass


@pytest.mark.parametrize("of", ["layers", "entry"])
def test_an_entry_of_the_cache_that_somebody_stopped_has_is_busy(
    tmp_path: Path, of: str, monkeypatch: Any
) -> None:
    monkeypatch.setattr("lazyfs.flock._FIRST_LOOK_S", 0)
    monkeypatch.setattr("lazyfs.flock._STOPPED_S", 0)
    cache = Cache(tmp_path / "cache")
    if of == "entry":
        cache.layer(LAYER, TOC, 8192, 2).close()
    path = cache._store.path(LAYER, TOC) if of == "entry" else cache.root / "layers"
    with lock_held(path) as process:
        with pytest.raises(CacheBusy, match=f"process {process.pid}, which is stopped") as caught:
            cache.layer(LAYER, TOC, 8192, 2)
        assert exit_code(caught.value) == 75
    cache.layer(LAYER, TOC, 8192, 2).close()


@pytest.mark.expect_log("waiting for a lock on .*/locks/name: it is held by process .* is stopped")
@pytest.mark.expect_log("cannot take the lock name: locked for [89] s by .*; going on without it")
async def test_work_is_done_twice_rather_than_not_at_all(tmp_path: Path, autojump_clock: Any) -> None:
    cache = Cache(tmp_path / "cache")
    (cache.root / "locks" / "name").touch()
    with lock_held(cache.root / "locks" / "name"):
        began = trio.current_time()
        async with cache.named_lock("name"):
            assert trio.current_time() - began < 12


async def test_who_works_on_is_waited_for(tmp_path: Path, autojump_clock: Any) -> None:
    cache = Cache(tmp_path / "cache")
    path = cache.root / "locks" / "name"
    path.touch()
    with lock_held(path, stopped=False) as process:
        with trio.move_on_after(9) as scope:
            async with cache.named_lock("name"):
                pass
        assert scope.cancelled_caught
        process.kill()
        process.wait()
        async with cache.named_lock("name"):
            pass


@pytest.mark.expect_log("layer .* is not kept: locked for .*/layers")
def test_a_layer_is_read_though_what_was_pulled_cannot_be_kept(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("lazyfs.flock._FIRST_LOOK_S", 0)
    monkeypatch.setattr("lazyfs.flock._STOPPED_S", 0)
    cache = Cache(tmp_path / "cache")
    geometry = Geometry(8192, 2)
    with lock_held(cache.root / "layers"), cache.fill(LAYER) as filling:
        filling.write(0, bytes(8192))
        assert not filling.commit(TOC, geometry.size, geometry.leaves)
    with cache.fill(LAYER) as filling:  # and the disk does not count as full
        filling.write(0, bytes(8192))
        assert filling.commit(TOC, geometry.size, geometry.leaves)
