"""A layer's entry: what is put is what is read, through reopening, power cuts, eviction and garbling."""

import fcntl
import os
import threading
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from indexer.errors import FormatError
from indexer.toc import round_to_block
from lazyfs.cache.cache import Cache
from lazyfs.cache.files import data_runs, write_sparse
from lazyfs.errors import CacheError
from tests.support.entries import remove_entry
from tests.support.spans import LAYER, TOC, content, spans_of, wrong_leaves

DATA = content(150_001, seed=1)
SPANS = spans_of(DATA, 33_333)
SIZE = round_to_block(len(DATA))

span_numbers = st.integers(0, len(SPANS) - 1)


def open_entry(root: Path, boot: str = "boot"):
    return Cache(root / "cache", boot_id=boot).layer(LAYER, TOC, SIZE, SPANS.leaves)


def files(root: Path) -> Path:
    return root / "cache" / "layers" / LAYER[7:] / TOC[7:]


def put_span(entry, number: int) -> bool:
    span = SPANS[number]
    data = DATA[span.uncompressed_start : span.uncompressed_end]
    return entry.put(span.uncompressed_start, span.first_leaf, data)


def leaf_place(leaf: int) -> tuple[int, int]:
    span = next(s for s in SPANS if s.first_leaf <= leaf < s.end_leaf)
    start = span.uncompressed_start + 4096 * (leaf - span.first_leaf)
    return start, min(start + 4096, span.uncompressed_end)


class EntryMachine(RuleBasedStateMachine):
    """An entry against a model: the mark of each leaf, and the layer's bytes."""

    @initialize()
    def begin(self) -> None:
        self.directory = TemporaryDirectory()
        self.root = Path(self.directory.name)
        self.boot = 0
        self.marks = [0] * SPANS.leaves
        self.entry = open_entry(self.root, "boot 0")
        self.other = open_entry(self.root, "boot 0")

    def teardown(self) -> None:
        if hasattr(self, "directory"):
            self.directory.cleanup()

    def reopen(self) -> None:
        self.entry.close()
        self.other.close()
        self.entry = open_entry(self.root, f"boot {self.boot}")
        self.other = open_entry(self.root, f"boot {self.boot}")

    @rule(number=span_numbers)
    def put_a_span(self, number: int) -> None:
        assert put_span(self.entry, number)
        span = SPANS[number]
        self.marks[span.first_leaf : span.end_leaf] = [1] * (span.end_leaf - span.first_leaf)

    @rule(number=span_numbers, first=st.integers(0, 8), count=st.integers(1, 4))
    def put_some_leaves(self, number: int, first: int, count: int) -> None:
        span = SPANS[number]
        first = span.first_leaf + first % (span.end_leaf - span.first_leaf)
        end = min(first + count, span.end_leaf)
        start = leaf_place(first)[0]
        assert self.other.put(start, first, DATA[start : leaf_place(end - 1)[1]])
        self.marks[first:end] = [1] * (end - first)

    @rule()
    def sync(self) -> None:
        assert self.entry.sync() == self.marks.count(1)
        self.marks = [2 if mark else 0 for mark in self.marks]

    @rule()
    def stop_and_start(self) -> None:
        self.reopen()

    @rule(noise=st.binary(min_size=1, max_size=9))
    def lose_power(self, noise: bytes) -> None:
        """Bytes that were not synced come back as anything."""
        self.entry.close()
        self.other.close()
        with (files(self.root) / "data").open("r+b") as data:
            for leaf, mark in enumerate(self.marks):
                if mark != 2:
                    start, end = leaf_place(leaf)
                    data.seek(start)
                    data.write((noise * 4096)[: end - start])
        self.marks = [mark if mark == 2 else 0 for mark in self.marks]
        self.boot += 1
        self.reopen()

    @rule(first=st.integers(0, SPANS.leaves), end=st.integers(0, SPANS.leaves))
    def clear(self, first: int, end: int) -> None:
        first, end = sorted((first, end))
        self.entry.clear([(first, end)])
        self.marks[first:end] = [0] * (end - first)

    @rule(numbers=st.sets(span_numbers))
    def evict(self, numbers: set[int]) -> None:
        assert self.entry.evict([SPANS[number] for number in numbers])
        for number in numbers:
            span = SPANS[number]
            self.marks[span.first_leaf : span.end_leaf] = [0] * (span.end_leaf - span.first_leaf)
            assert not any(self.other.read(span.uncompressed_start, span.size))

    @precondition(lambda self: any(self.marks))
    @rule(what=st.sampled_from(["presence short", "data short", "data long", "presence noise", "gone"]))
    def garble(self, what: str) -> None:
        path = files(self.root)
        self.entry.close()
        self.other.close()
        match what:
            case "presence short":
                os.truncate(path / "presence", SPANS.leaves - 1)
            case "data short":
                os.truncate(path / "data", SIZE - 1)
            case "data long":
                os.truncate(path / "data", SIZE + 1)
            case "presence noise":
                (path / "presence").write_bytes(b"\7" + b"\2" * (SPANS.leaves - 1))
            case "gone":
                (path / "data").unlink()
        self.marks = [0] * SPANS.leaves
        self.reopen()

    @rule(noise=st.sampled_from([b"", b"[]", b"{", b"null", b'{"size": 1}', b"[" * 100_000]))
    def lose_the_state(self, noise: bytes) -> None:
        """Which boot made the marks is unknown then: only synced ones count."""
        (files(self.root) / "state").write_bytes(noise)
        self.marks = [mark if mark == 2 else 0 for mark in self.marks]
        self.reopen()

    @invariant()
    def what_is_here_is_known_everywhere(self) -> None:
        for entry in (self.entry, self.other):
            there = [entry.has(leaf, leaf + 1) for leaf in range(SPANS.leaves)]
            assert there == [mark > 0 for mark in self.marks]
            gaps = {leaf for first, end in entry.missing(0, SPANS.leaves) for leaf in range(first, end)}
            assert gaps == {leaf for leaf, mark in enumerate(self.marks) if not mark}
            assert entry.complete == all(self.marks)
            statistics = entry.statistics()
            assert (statistics.present, statistics.synced) == (
                len(self.marks) - self.marks.count(0),
                self.marks.count(2),
            )

    @invariant()
    def what_is_here_is_right(self) -> None:
        assert wrong_leaves(DATA, SPANS, self.entry) == []


TestEntry = EntryMachine.TestCase
TestEntry.settings = settings(max_examples=80, stateful_step_count=25)


@given(
    old=st.binary(max_size=3),
    pieces=st.lists(st.tuples(st.integers(0, 9000), st.booleans()), max_size=6),
    offset=st.integers(0, 9000),
)
@settings(max_examples=60)
def test_a_sparse_write_reads_back_whatever_was_there(old: bytes, pieces, offset: int) -> None:
    data = b"".join(bytes(size) if zeros else b"\xa5" * size for size, zeros in pieces)
    with TemporaryDirectory() as directory, (Path(directory) / "file").open("w+b") as file:
        before = (old * 70_000)[:70_000]
        file.write(before)
        file.flush()
        os.ftruncate(file.fileno(), 70_000)
        write_sparse(file.fileno(), data, offset)
        expected = bytearray(before.ljust(70_000, b"\0"))
        expected[offset : offset + len(data)] = data
        assert os.pread(file.fileno(), 70_000, 0) == expected


def test_zeros_take_no_space(tmp_path: Path) -> None:
    spans = spans_of(bytes(1 << 20), 1 << 18)
    with Cache(tmp_path / "cache").layer(LAYER, TOC, 1 << 20, spans.leaves) as entry:
        for span in spans:
            assert entry.put(span.uncompressed_start, span.first_leaf, bytes(span.size))
        assert entry.complete
        assert entry.statistics().allocated_bytes == 0
        assert list(data_runs(entry.fileno(), 0, 1 << 20)) == []


def test_eviction_gives_the_space_back(tmp_path: Path) -> None:
    data = os.urandom(1 << 20)
    spans = spans_of(data, 1 << 18)
    with Cache(tmp_path / "cache").layer(LAYER, TOC, 1 << 20, spans.leaves) as entry:
        for span in spans:
            entry.put(
                span.uncompressed_start,
                span.first_leaf,
                data[span.uncompressed_start : span.uncompressed_end],
            )
        entry.sync()
        assert entry.statistics().allocated_bytes >= 1 << 20
        assert entry.evict(list(spans)[:3])
        assert entry.missing(0, spans.leaves) == [(0, 192)]
        assert entry.statistics().allocated_bytes < (1 << 18) + 65536
        assert entry.read(3 << 18, 1 << 18) == data[3 << 18 :]


def test_leaves_outside_the_layer_are_refused(tmp_path: Path) -> None:
    with open_entry(tmp_path) as entry:
        for start, first_leaf, size in [
            (SIZE - 1, 0, 4096),
            (-4096, 0, 4096),
            (0, -1, 4096),
            (0, SPANS.leaves, 1),
            (0, SPANS.leaves - 1, 4097),
        ]:
            with pytest.raises(CacheError):
                entry.put(start, first_leaf, bytes(size))
        assert entry.statistics().present == 0
        with pytest.raises(CacheError):
            entry.read(SIZE - 1, 2)


def test_a_closed_entry_says_so_and_releases_its_lock(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    entry = cache.layer(LAYER, TOC, SIZE, SPANS.leaves)
    assert not remove_entry(cache, LAYER, TOC)
    entry.close()
    for use in (lambda: entry.has(0, 1), lambda: entry.read(0, 1), lambda: put_span(entry, 0), entry.sync):
        with pytest.raises(CacheError, match="closed"):
            use()
    assert "closed" in repr(entry)
    assert remove_entry(cache, LAYER, TOC)
    assert remove_entry(cache, LAYER, TOC)
    assert cache.ls() == []


def test_a_write_under_way_when_the_entry_is_closed_never_meets_another_file(
    tmp_path: Path, monkeypatch
) -> None:
    """A closed descriptor's number is given to the next file that is opened."""
    entry = open_entry(tmp_path)
    real = os.pwrite
    innocent = []

    def close_meanwhile(*arguments) -> int:
        if not innocent:
            entry.close()
            innocent.extend((tmp_path / f"innocent{number}").open("w+b") for number in range(8))
        return real(*arguments)

    monkeypatch.setattr(os, "pwrite", close_meanwhile)
    assert put_span(entry, 0)
    monkeypatch.undo()
    for file in innocent:
        assert os.fstat(file.fileno()).st_size == 0
        file.close()
    assert len(innocent) == 8
    with open_entry(tmp_path) as entry:
        assert entry.missing(0, SPANS.leaves) == [(SPANS[0].end_leaf, SPANS.leaves)]
        assert wrong_leaves(DATA, SPANS, entry) == []


@pytest.mark.parametrize("half", [False, True])
def test_an_entry_that_is_removed_while_it_is_opened_is_not_the_one_that_is_opened(
    tmp_path: Path, monkeypatch, half: bool
) -> None:
    """It is renamed first and unlinked later; here that has not come yet if it is half removed."""
    open_entry(tmp_path).close()
    real = fcntl.flock
    removals = []

    def remove_meanwhile(descriptor: int, kind: int) -> None:
        if kind & fcntl.LOCK_SH and not removals:
            removals.append(descriptor)
            if half:
                files(tmp_path).rename(tmp_path / "on its way out")
            else:
                assert remove_entry(Cache(tmp_path / "cache"), LAYER, TOC)
        real(descriptor, kind)

    monkeypatch.setattr(fcntl, "flock", remove_meanwhile)
    with open_entry(tmp_path) as entry, open_entry(tmp_path) as other:
        assert len(removals) == 1
        put_span(entry, 0)
        assert other.has(0, SPANS[0].end_leaf)


def test_many_threads_put_and_sync_at_once(tmp_path: Path) -> None:
    with open_entry(tmp_path) as entry, open_entry(tmp_path) as other:

        def work(seed: int) -> None:
            for step in range(40):
                put_span((entry, other)[seed % 2], (seed * 7 + step) % len(SPANS))
                if step % 10 == seed:
                    (entry, other)[step % 2].sync()

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert entry.complete
        assert wrong_leaves(DATA, SPANS, entry) == []


def test_an_empty_layer_is_complete(tmp_path: Path) -> None:
    with Cache(tmp_path / "cache").layer(LAYER, TOC, 0, 0) as entry:
        assert entry.complete
        assert entry.put(0, 0, b"")
        assert entry.read(0, 0) == b""
        assert entry.sync() == 0
        assert entry.statistics().leaves == 0


def test_an_audit_is_remembered_until_the_entry_is_reset(tmp_path: Path) -> None:
    with open_entry(tmp_path) as entry:
        put_span(entry, 0)
        entry.sync()
        assert not entry.audited
        entry.record_audit()
        assert entry.audited
    with open_entry(tmp_path, "another boot") as entry:
        assert entry.audited
        assert entry.statistics().present == SPANS[0].end_leaf
    os.truncate(files(tmp_path) / "data", 5)
    with open_entry(tmp_path, "another boot") as entry:
        assert not entry.audited


def test_who_has_a_garbled_entry_open_does_not_disturb_the_new_one(tmp_path: Path) -> None:
    old = open_entry(tmp_path)
    put_span(old, 0)
    os.truncate(files(tmp_path) / "data", SIZE + 4096)
    with open_entry(tmp_path) as new:
        assert new.statistics().present == 0
        put_span(new, 1)
        assert not old.has(SPANS[1].first_leaf, SPANS[1].end_leaf)
        put_span(old, 2)
        assert old.sync() > 0
        old.close()
        assert new.missing(0, SPANS.leaves) == [(0, SPANS[1].first_leaf), (SPANS[1].end_leaf, SPANS.leaves)]
        assert wrong_leaves(DATA, SPANS, new) == []


def test_two_tables_of_contents_do_not_share_bytes(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    with (
        cache.layer(LAYER, TOC, SIZE, SPANS.leaves) as ours,
        cache.layer(LAYER, "sha256:" + "3" * 64, SIZE, SPANS.leaves) as theirs,
    ):
        put_span(theirs, 0)
        assert ours.statistics().present == 0
    with pytest.raises(FormatError):
        cache.layer("sha256:../../etc", TOC, SIZE, SPANS.leaves)


def test_all_that_is_made_is_private(tmp_path: Path) -> None:
    with open_entry(tmp_path) as entry:
        put_span(entry, 0)
        entry.note_use()
        modes = {
            path.relative_to(tmp_path).as_posix(): path.stat().st_mode & 0o777
            for path in tmp_path.joinpath("cache").rglob("*")
        }
    assert {mode for name, mode in modes.items() if (tmp_path / name).is_dir()} == {0o700}
    assert {mode for name, mode in modes.items() if (tmp_path / name).is_file()} == {0o600}
    assert {path.name for path in files(tmp_path).iterdir()} == {"data", "presence", "state", "used"}
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
