"""The parts of the data daemon by themselves: the pool, the ledger, the protocol, the client's table."""

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from indexer.errors import FormatError
from lazyfs.errors import BadReference, CacheError, LazyfsError, NotFound
from lazyfs.mount.tuning import ReadAheadKnob
from lazyfs.oci.chain import ChainOrder, chain_name
from lazyfs.service.drivers.fuse import FuseDriver
from lazyfs.service.ledger import Entry, Ledger, SavedFile, SavedSession, SavedTree, State
from lazyfs.service.pool import Pool
from lazyfs.service.protocol import MAX_LAYERS, decoded, encoded, order_fields, parse_order
from lazyfs.service.returning import Returning
from lazyfs.service.scribe import Scribe
from lazyfs.service.survival import descriptors
from lazyfs.service.survival.supervisor import Supervisor
from lazyfs.service.tree import OpenTree

DIGESTS = st.binary(min_size=32, max_size=32).map(lambda data: f"sha256:{data.hex()}")
ORDERS = st.builds(
    ChainOrder,
    image=st.text(st.characters(categories=("L", "M", "N", "P", "S"), include_characters=" "), max_size=50),
    manifest=DIGESTS | st.just(""),
    layers=st.integers(1, MAX_LAYERS),
    layer=DIGESTS,
    chain_id=DIGESTS | st.just(""),
)
BOOT = "8f5f7c1e-0000-4000-8000-000000000001"
NUMBERS = st.integers(0, 2**63 - 1)
WORDS = st.text("abcdef0123456789-", min_size=1, max_size=20)
NAMES = st.text("abcdef0123456789", min_size=32, max_size=32)
LAYER_FILES = st.builds(SavedFile, NUMBERS, NUMBERS, NUMBERS, layer=DIGESTS, toc=DIGESTS, order=ORDERS)
METADATA_FILES = st.builds(SavedFile, NUMBERS, NUMBERS, NUMBERS, path=WORDS)
PAIRS = st.lists(st.tuples(DIGESTS, DIGESTS), max_size=3).map(tuple)
ENTRIES = st.lists(
    st.builds(Entry, NAMES, ORDERS, WORDS, st.booleans(), st.lists(NUMBERS, max_size=3).map(tuple)),
    max_size=3,
).map(tuple)
STATES = st.builds(
    State,
    st.none() | st.builds(SavedSession, WORDS, NUMBERS, NUMBERS, NUMBERS),
    st.lists(LAYER_FILES | METADATA_FILES, max_size=3).map(tuple),
    st.lists(st.builds(SavedTree, WORDS, WORDS, NUMBERS, NUMBERS, ORDERS, WORDS, PAIRS), max_size=3).map(
        tuple
    ),
    ENTRIES,
    ENTRIES,
)


# The protocol


@given(ORDERS)
def test_an_order_travels_whole(order):
    assert parse_order(decoded(encoded({"order": order_fields(order)}))["order"]) == order


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ["image", "manifest", "layers", "layer", "chain_id", "more"]


@given(JSON | st.dictionaries(st.sampled_from(FIELDS), JSON | DIGESTS))
def test_whatever_else_is_no_order(fields):
    try:
        order = parse_order(fields)
    except BadReference:
        return
    assert order.layers >= 1
    assert order.layer.startswith("sha256:")


@given(st.binary(max_size=50))
def test_garbage_is_no_message(line):
    try:
        assert isinstance(decoded(line), dict)
    except BadReference:
        return


def test_deeply_nested_garbage_is_no_message():
    with pytest.raises(BadReference):
        decoded(b"[" * 1_000_000)


def test_a_mount_is_named_after_its_layers_in_their_order():
    one, other = "sha256:" + "1" * 64, "sha256:" + "2" * 64
    assert chain_name([one, other]) == chain_name((one, other)) != chain_name([other, one])
    assert len(chain_name([one])) == 32


# The ledger


@settings(max_examples=50)  # the disk syncs when it likes
@given(STATES)
def test_what_is_saved_is_loaded(tmp_path_factory, state):
    ledger = Ledger(tmp_path_factory.mktemp("ledger"), BOOT)
    ledger.save(state)
    assert ledger.load() == replace(state, idle=())


@settings(max_examples=50)
@given(STATES, st.data())
def test_a_damaged_ledger_is_understood_in_part_or_not_at_all(tmp_path_factory, state, data):
    place = tmp_path_factory.mktemp("ledger")
    ledger = Ledger(place, BOOT)
    ledger.save(state)
    whole = (place / "mounts.json").read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    cut = data.draw(st.sampled_from([whole[:at], whole[:at] + b"\xff" + whole[at + 1 :]]))
    (place / "mounts.json").write_bytes(cut)
    assert isinstance(ledger.load(), State)


@settings(max_examples=50)
@given(st.lists(STATES, min_size=1, max_size=4), st.sampled_from(["", "cut", "lost", "old"]))
def test_after_a_power_cut_the_orders_count_whatever_became_of_the_rest(tmp_path_factory, states, rest):
    place = tmp_path_factory.mktemp("ledger")
    ledger = Ledger(place, BOOT)
    kept = b""
    for state in states:
        ledger.save(state)
        kept = kept or (place / "mounts.json").read_bytes()
    match rest:
        case "cut":
            (place / "mounts.json").write_bytes(b"")
        case "lost":
            (place / "mounts.json").unlink()
        case "old":
            (place / "mounts.json").write_bytes(kept)
    loaded = Ledger(place, "the next boot").load()
    last = states[-1].entries + states[-1].idle
    ordered = sorted(((entry.name, entry.order) for entry in last if entry.mounted), key=str)
    assert sorted(((entry.name, entry.order) for entry in loaded.entries), key=str) == ordered
    assert all(entry.mounted for entry in loaded.entries), "they are to be made again"
    assert (loaded.session, loaded.files, loaded.trees) == (None, (), ())


def test_orders_that_are_on_disk_are_not_written_again(tmp_path):
    ledger = Ledger(tmp_path, BOOT)
    entry = Entry("1" * 32, ChainOrder("a", "", 1, "sha256:" + "1" * 64, ""), mounted=False)
    ledger.save(State(entries=(entry,)))
    begun = (tmp_path / "orders.json").stat().st_ino
    ledger.save(State(entries=(replace(entry, devices=(7,)),)))
    assert (tmp_path / "orders.json").stat().st_ino == begun, "nobody was promised this mount yet"
    ledger.save(State(entries=(replace(entry, mounted=True),)))
    ordered = (tmp_path / "orders.json").stat().st_ino
    assert ordered != begun
    ledger.save(State(SavedSession("1", 1, 2, 3), entries=(replace(entry, mounted=True, devices=(7, 8)),)))
    assert (tmp_path / "orders.json").stat().st_ino == ordered
    ledger.save(State(SavedSession("1", 1, 2, 3), idle=(replace(entry, mounted=True),)))
    assert (tmp_path / "orders.json").stat().st_ino == ordered, "it may be ordered again soon"
    assert ledger.load().session == SavedSession("1", 1, 2, 3)


def test_a_mount_that_cannot_be_understood_does_not_take_the_others_with_it(tmp_path):
    order = ChainOrder("a", "", 1, "sha256:" + "1" * 64, "")
    ledger = Ledger(tmp_path, BOOT)
    ledger.save(State(entries=(Entry("1" * 32, order), Entry("2" * 32, order))))
    document = json.loads((tmp_path / "mounts.json").read_bytes())
    document["mounts"][0]["name"] = "../../etc"
    (tmp_path / "mounts.json").write_text(json.dumps(document))
    assert [entry.name for entry in ledger.load().entries] == ["2" * 32]


def test_a_full_disk_leaves_the_ledger_as_it_was(tmp_path):
    ledger = Ledger(tmp_path, BOOT)
    order = ChainOrder("a", "", 1, "sha256:" + "1" * 64, "")
    ledger.save(State(entries=(Entry("1" * 32, order),)))
    (tmp_path / "mounts.new").mkdir()
    with pytest.raises(CacheError):
        ledger.save(State())
    assert len(ledger.load().entries) == 1


async def test_changes_of_a_moment_are_written_once(tmp_path):
    saved = []

    class Counting(Ledger):
        def save(self, state: State) -> None:
            saved.append(state)
            super().save(state)

    scribe = Scribe(Counting(tmp_path, BOOT), State)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scribe.write)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(20):
            nursery.start_soon(scribe.write)
    assert len(saved) <= 2


# The pool


class Things:
    """Opens things slowly, and counts."""

    def __init__(self, error: Exception | None = None) -> None:
        self.opened = self.closed = 0
        self.error = error

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[int]:
        await trio.sleep(1)
        if self.error:
            raise self.error
        self.opened += 1
        try:
            yield self.opened
        finally:
            self.closed += 1


async def test_a_thing_is_opened_once_for_all_and_closed_when_nobody_needed_it_for_a_while(
    nursery, autojump_clock
):
    pool, things = Pool(nursery, idle_s=60), Things()

    async def use(for_s: float) -> None:
        async with pool.lease("key", things) as value:
            assert value == 1
            await trio.sleep(for_s)

    async with trio.open_nursery() as users:
        for seconds in range(5):
            users.start_soon(use, seconds)
    await trio.sleep(59)
    await use(1)
    assert (things.opened, things.closed, pool.open_values()) == (1, 0, [1])
    await trio.sleep(61)
    assert (things.opened, things.closed, pool.open_values()) == (1, 1, [])


async def test_who_asked_first_may_go_before_it_is_open(nursery, autojump_clock):
    pool, things = Pool(nursery, idle_s=60), Things()
    with trio.move_on_after(0.5):
        async with pool.lease("key", things):
            pytest.fail("it opens too soon")
    async with pool.lease("key", things):
        assert things.opened == 1


async def told_of(pool: Pool, things: Things) -> list[type[LazyfsError]]:
    """What two who want a thing at once are told."""
    told = []

    async def use() -> None:
        try:
            async with pool.lease("key", things):
                pytest.fail("it opens")
        except LazyfsError as error:
            told.append(type(error))

    async with trio.open_nursery() as users:
        users.start_soon(use)
        users.start_soon(use)
    return told


async def test_what_cannot_be_opened_is_told_to_all_and_tried_again_for_the_next(nursery, autojump_clock):
    pool, things = Pool(nursery, idle_s=60), Things(NotFound("no"))
    assert await told_of(pool, things) == [NotFound, NotFound]
    things.error = None
    async with pool.lease("key", things) as value:
        assert value == 1


@pytest.mark.expect_log("a bug")
async def test_a_bug_is_told_to_all_and_ends_nothing(nursery, autojump_clock):
    pool, things = Pool(nursery, idle_s=60), Things(ZeroDivisionError())
    assert await told_of(pool, things) == [LazyfsError, LazyfsError]


async def test_what_the_kernel_has_open_stays_open_without_a_lease(nursery, autojump_clock):
    pool, things = Pool(nursery, idle_s=60), Things()
    async with pool.lease("key", things):
        pool.count("key", 1)
    await trio.sleep(1000)
    assert things.closed == 0
    pool.count("key", -1)
    await trio.sleep(61)
    assert things.closed == 1


async def test_a_renewed_thing_is_another_one_and_the_old_goes_with_its_users(nursery, autojump_clock):
    pool, things = Pool(nursery, idle_s=0), Things()
    async with pool.lease("key", things) as first:
        pool.renew("key")
        async with pool.lease("key", things) as second:
            assert (first, second) == (1, 2)
    await trio.sleep(1)
    assert things.closed == 2


# Readers that wait for a layer to come back


class Layer:
    def read_nowait(self, start: int, size: int) -> bytes | None:
        return None

    def has_some(self, start: int, size: int) -> bool:
        return size > 100

    async def read(self, start: int, size: int) -> bytes:
        return bytes(size)


async def test_readers_wait_until_a_layer_is_back(nursery, autojump_clock):
    returning = Returning(1)
    assert returning.read_nowait(0, 10) is None
    assert not returning.has_some(0, 101)
    nursery.start_soon(trio.sleep, 5)
    with trio.move_on_after(10) as scope:
        await returning.read(0, 10)
    assert scope.cancelled_caught
    returning.fail(NotFound("gone"))
    with pytest.raises(NotFound):
        await returning.read(0, 10)
    returning.become(Layer())
    assert await returning.read(0, 10) == bytes(10)
    assert returning.has_some(0, 101)
    returning.count(-1)
    with trio.fail_after(1):
        await returning.wait_closed()


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, 0),
        ({"WATCHDOG_USEC": "6000000"}, 3),
        ({"WATCHDOG_USEC": "6000000", "WATCHDOG_PID": "7"}, 3),
        ({"WATCHDOG_USEC": "6000000", "WATCHDOG_PID": "8"}, 0),
        ({"WATCHDOG_USEC": "soon"}, 0),
    ],
)
def test_signs_of_life_come_twice_as_often_as_the_service_manager_wants(environment, seconds):
    assert descriptors.watchdog_s(environment, 7) == seconds


@pytest.mark.parametrize(("hung_after_s", "seconds"), [(0, 5), (60, 5), (2, 0.5)])
def test_signs_of_life_come_several_times_before_a_process_counts_as_hung(hung_after_s, seconds):
    assert descriptors.beat_s(hung_after_s) == seconds


async def test_a_damaged_tree_is_refused_before_the_kernel_is_asked_for_a_connection(tmp_path, nursery):
    (tmp_path / "damaged").write_bytes(b"no image" * 1024)

    class Damaged:
        async def open(self, _order: ChainOrder, _stack: AsyncExitStack) -> OpenTree:
            return OpenTree(tmp_path / "damaged", (), (), 0, ReadAheadKnob())

    async def note(_devices: object) -> None:
        raise AssertionError

    driver = FuseDriver(nursery, Damaged(), None, Supervisor(), 1.0, lambda: None)
    entry = Entry("0" * 32, ChainOrder("app", "", 1, "sha256:" + "0" * 64, ""))
    with pytest.raises(FormatError):
        async with driver.mounted(entry, tmp_path / "mount", note):
            raise AssertionError
    assert "/dev/fuse" not in open_files()


def open_files() -> set[str]:
    links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return {str(link.readlink()) for link in links}


def test_a_job_that_nobody_tells_what_to_do_ends_without_a_word():
    command = [sys.executable, "-P", "-m", "lazyfs.service.index_job"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


async def test_a_thing_has_another_key_once_it_is_open_until_it_is_renewed(nursery, autojump_clock):
    things = Things()
    pool = Pool(nursery, idle_s=60, another=lambda value: f"number {value}")

    async def opened(key: str) -> int:
        async with pool.lease(key, things) as value:
            return value

    assert await opened("number 2") == 1
    assert await opened("key") == 2
    assert await opened("number 2") == 1, "that has the key already"
    assert await opened("number 1") == 1
    assert pool.open_values() == [1, 2]
    assert "number 1" in pool
    pool.renew("number 1")
    assert "number 2" not in pool
    assert await opened("number 2") == 3
    await trio.sleep(61)
    assert (pool.open_values(), things.closed) == ([], 3)


async def test_what_was_renewed_while_it_opened_gets_no_other_key(nursery, autojump_clock):
    things = Things()
    pool = Pool(nursery, idle_s=60, another=lambda _: "another")

    async def use() -> None:
        async with pool.lease("key", things):
            await trio.sleep(10)

    async with trio.open_nursery() as users:
        users.start_soon(use)
        await trio.sleep(0.5)
        pool.renew("key")
        await trio.sleep(1)
        assert "another" not in pool
        users.start_soon(use)
        await trio.sleep(2)
        async with pool.lease("another", things) as value:
            assert value == 2
