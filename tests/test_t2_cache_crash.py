"""What SIGKILL, power cuts and full disks leave: never a wrong byte, never an unusable cache."""

import errno
import os
import resource
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.digest import sha256_digest
from indexer.toc import round_to_block
from lazyfs.cache.cache import Cache
from lazyfs.cache.entry_files import Geometry
from lazyfs.cache.free_space import FreeSpace
from lazyfs.cache.layer_entry import LayerEntry
from lazyfs.cache.layer_store import LayerStore
from lazyfs.cache.scratch import Scratch
from lazyfs.errors import CacheError
from tests.support.crash import child, fill_up, kill_after, lines, small_disk
from tests.support.spans import LAYER, TOC, content, spans_of, wrong_leaves

DATA = content(2_000_003, seed=2)
SPANS = spans_of(DATA, 77_777)
SIZE = round_to_block(len(DATA))

WRITER = """
    import random, sys
    from pathlib import Path
    from lazyfs.cache.cache import Cache
    from tests.test_t2_cache_crash import SPANS, SIZE, LAYER, TOC, put_span

    entry = Cache(Path(sys.argv[1])).layer(LAYER, TOC, SIZE, SPANS.leaves)
    order = list(SPANS)
    random.Random(sys.argv[2]).shuffle(order)
    for span in order * 1000:
        put_span(entry, span)
        print(span.number)
        if span.number % 7 == 0:
            entry.sync()
"""


def put_span(entry, span) -> bool:
    return entry.put(
        span.uncompressed_start, span.first_leaf, DATA[span.uncompressed_start : span.uncompressed_end]
    )


@pytest.mark.parametrize("count", [1, 2, 3, 9, 26, 60])
def test_a_killed_writer_leaves_only_right_leaves(tmp_path: Path, count: int) -> None:
    with child(WRITER, tmp_path / "cache", count) as process:
        said = [int(line) for line in lines(process, count - 1)]
        kill_after(process, 1)
    with Cache(tmp_path / "cache").layer(LAYER, TOC, SIZE, SPANS.leaves) as entry:
        assert all(entry.has(SPANS[number].first_leaf, SPANS[number].end_leaf) for number in said)
        assert wrong_leaves(DATA, SPANS, entry) == []
        assert all(put_span(entry, span) for span in SPANS)
        assert wrong_leaves(DATA, SPANS, entry) == []


MAKER = """
    import sys
    from pathlib import Path
    from lazyfs.cache.cache import Cache
    from tests.support.entries import remove_entry
    from indexer.digest import sha256_digest

    cache = Cache(Path(sys.argv[1]))
    for number in range(100_000):
        layer, toc = (sha256_digest(b"%d" % (n % 5)) for n in (number, number // 5))
        with cache.layer(layer, toc, 8192, 2) as entry:
            entry.put(0, 0, b"x" * 8192)
        with cache.fill(layer) as filling:
            filling.write(0, b"x" * 8192)
            filling.commit(sha256_digest(b"f"), 8192, 2)
        cache.documents.put(sha256_digest(b"doc"), b"doc")
        cache.references.remember("a", {}, number)
        remove_entry(cache, layer, toc)
        print(number)
"""


@pytest.mark.parametrize("count", [1, 4, 13, 40])
def test_a_process_killed_while_making_things_leaves_them_whole_or_absent(tmp_path: Path, count: int) -> None:
    with child(MAKER, tmp_path / "cache") as process:
        kill_after(process, count)
    cache = Cache(tmp_path / "cache")
    assert list((tmp_path / "cache" / "tmp").iterdir()) == []
    assert cache.documents.get(sha256_digest(b"doc")) == b"doc"
    assert cache.references.recall("a") is not None
    for info in cache.ls():
        with cache.layer(info.layer_digest, info.toc_digest, 8192, 2) as entry:
            assert not entry.has(0, 2) or entry.read(0, 8192) == b"x" * 8192


@given(
    steps=st.lists(
        st.one_of(st.integers(0, len(SPANS) - 1), st.just("sync"), st.just("evict")), min_size=1, max_size=12
    ),
    luck=st.randoms(use_true_random=False),
)
@settings(max_examples=40)
def test_a_power_cut_leaves_only_right_leaves(steps: list, luck) -> None:
    """Each page written since the last fsync is on disk as it was then, or as it is now, for each file."""
    with TemporaryDirectory() as directory:
        path = Path(directory) / "cache" / "layers" / LAYER[7:] / TOC[7:]
        entry = Cache(Path(directory) / "cache", boot_id="one").layer(LAYER, TOC, SIZE, SPANS.leaves)
        names = {"data": 4096, "presence": 1}
        on_disk = {name: [(path / name).read_bytes()] for name in names}
        for step in steps:
            if step == "sync":
                entry.sync()
                on_disk = {name: [] for name in names}
            elif step == "evict":
                # What is on disk when the marks are cleared: that nothing evicted outlasts a power cut.
                marks, end = (path / "presence").read_bytes(), SPANS[1].end_leaf
                entry.evict([SPANS[0], SPANS[1]])
                demoted = marks[:end].replace(b"\2", b"\1") + marks[end:]
                on_disk["presence"] = [demoted] if b"\2" in marks[:end] else on_disk["presence"]
            else:
                put_span(entry, SPANS[step])
            for name, versions in on_disk.items():
                versions.append((path / name).read_bytes())
        entry.close()
        for name, unit in names.items():
            (path / name).write_bytes(
                b"".join(
                    luck.choice(on_disk[name])[at : at + unit] for at in range(0, len(on_disk[name][0]), unit)
                )
            )
        with Cache(Path(directory) / "cache", boot_id="two").layer(LAYER, TOC, SIZE, SPANS.leaves) as entry:
            assert wrong_leaves(DATA, SPANS, entry) == []
            for span in SPANS:
                put_span(entry, span)
            assert wrong_leaves(DATA, SPANS, entry) == []


def test_what_was_synced_outlasts_a_power_cut(tmp_path: Path) -> None:
    with Cache(tmp_path / "cache", boot_id="one").layer(LAYER, TOC, SIZE, SPANS.leaves) as entry:
        put_span(entry, SPANS[3])
        assert entry.sync() == SPANS[3].end_leaf - SPANS[3].first_leaf
        assert entry.sync() == 0
        put_span(entry, SPANS[5])
    for boot in ("two", "two", "three"):
        with Cache(tmp_path / "cache", boot_id=boot).layer(LAYER, TOC, SIZE, SPANS.leaves) as entry:
            assert entry.has(SPANS[3].first_leaf, SPANS[3].end_leaf)
            assert entry.present(0, SPANS.leaves) == SPANS[3].end_leaf - SPANS[3].first_leaf


def test_marks_made_while_syncing_wait_for_the_next_sync(tmp_path: Path, monkeypatch) -> None:
    """What another thread puts while the data goes to disk is not settled with it."""
    real = os.fdatasync
    with Cache(tmp_path / "cache").layer(LAYER, TOC, SIZE, SPANS.leaves) as entry:

        def put_meanwhile(descriptor: int) -> None:
            real(descriptor)
            if descriptor == entry.fileno():
                put_span(entry, SPANS[1])

        put_span(entry, SPANS[0])
        monkeypatch.setattr(os, "fdatasync", put_meanwhile)
        assert entry.sync() == SPANS[0].end_leaf
        monkeypatch.undo()
        assert entry.statistics().synced == SPANS[0].end_leaf
        assert entry.sync() == SPANS[1].end_leaf - SPANS[1].first_leaf


def test_eviction_forgets_on_disk_before_it_punches(tmp_path: Path, monkeypatch) -> None:
    real = os.fdatasync
    seen = []
    path = tmp_path / "cache" / "layers" / LAYER[7:] / TOC[7:]
    with Cache(tmp_path / "cache").layer(LAYER, TOC, SIZE, SPANS.leaves) as entry:
        put_span(entry, SPANS[0])
        entry.sync()

        def look(descriptor: int) -> None:
            real(descriptor)
            synced = entry.statistics().synced, entry.read(0, SPANS[0].size) == DATA[: SPANS[0].size]
            seen.append((os.path.samestat(os.fstat(descriptor), (path / "presence").stat()), *synced))

        monkeypatch.setattr(os, "fdatasync", look)
        entry.evict([SPANS[0]])
        assert not entry.has(0, 1)
    assert seen == [(True, 0, True)]


def test_what_the_disk_did_not_take_is_forgotten(tmp_path: Path, monkeypatch) -> None:
    """After a failed fsync the page cache may drop what it could not write, and read back the old bytes."""

    def fail(_descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with Cache(tmp_path / "cache").layer(LAYER, TOC, SIZE, SPANS.leaves) as entry:
        put_span(entry, SPANS[0])
        entry.sync()
        put_span(entry, SPANS[1])
        monkeypatch.setattr(os, "fdatasync", fail)
        with pytest.raises(CacheError, match="Input/output error"):
            entry.sync()
        monkeypatch.undo()
        assert entry.missing(0, SPANS.leaves) == [(SPANS[0].end_leaf, SPANS.leaves)]


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_full_disk_refuses_and_stays_right(tmp_path: Path, kind: str) -> None:
    with small_disk(tmp_path / "disk", 4 << 20, kind) as disk:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes((1 << 20) + (2 << 19)))
        cache = Cache(disk / "cache", boot_id="one")
        size = 64 << 20
        with cache.layer(LAYER, TOC, size, size // 4096) as entry:
            took = []
            for number in range(64):
                data = bytes([number + 1]) * (1 << 18)
                if entry.put(number << 18, number * 64, data):
                    took.append(number)
            # What was put first has made room for what came last.
            here = [n for n in range(64) if entry.has(n * 64, n * 64 + 64)]
            assert 0 < len(here) < len(took) < 64
            assert entry.statistics().puts_refused == 64 - len(took)
            assert all(entry.read(n << 18, 1 << 18) == bytes([n + 1]) * (1 << 18) for n in here)
            assert entry.sync() == 64 * len(here)
        fill_up(disk / "more")
        with pytest.raises(CacheError, match="No space left"):
            cache.documents.put(sha256_digest(bytes(1 << 20)), bytes(1 << 20))
        ballast.unlink()
        with Cache(disk / "cache", boot_id="two").layer(LAYER, TOC, size, size // 4096) as entry:
            assert entry.present(0, size // 4096) == 64 * len(here)
            assert entry.put(63 << 18, 63 * 64, b"x" * (1 << 18))


@pytest.mark.expect_log("nothing of layer .* is cached: No space left")
@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_marks_have_their_room_from_the_start(tmp_path: Path, kind: str) -> None:
    """Pages of a mapped file that a full disk has no room for would be a SIGBUS, even for readers."""
    with small_disk(tmp_path / "disk", 4 << 20, kind) as disk:
        with Cache(disk / "cache").layer(LAYER, TOC, 1 << 40, 1 << 28) as entry:
            assert not entry.put(0, 0, b"x" * 4096)
            assert entry.read_if_here(0, 1, 0, 4096) is None
        leaves = 1 << 20
        with Cache(disk / "cache").layer(LAYER, TOC, leaves * 4096, leaves) as entry:
            fill_up(disk / "ballast")
            assert entry.missing(0, leaves) == [(0, leaves)]
            there = range(1, leaves, 4096)
            assert all(entry.put(leaf * 4096, leaf, bytes(4096)) for leaf in there)
            assert not entry.put(0, 0, b"x" * 4096)
            assert entry.present(0, leaves) == len(there)


def test_a_full_disk_can_still_be_read_after_a_boot(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 2 << 20, "tmpfs") as disk:
        with Cache(disk / "cache", boot_id="one").layer(LAYER, TOC, SIZE, SPANS.leaves) as entry:
            put_span(entry, SPANS[0])
            entry.sync()
            put_span(entry, SPANS[1])
        fill_up(disk / "ballast")
        for _ in range(2):
            with Cache(disk / "cache", boot_id="two").layer(LAYER, TOC, SIZE, SPANS.leaves) as entry:
                assert entry.missing(0, SPANS.leaves) == [(SPANS[0].end_leaf, SPANS.leaves)]
                assert wrong_leaves(DATA, SPANS, entry) == []


def test_a_file_size_limit_is_a_full_disk(tmp_path: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from lazyfs.cache.cache import Cache
        from tests.test_t2_cache_crash import SPANS, SIZE, LAYER, TOC, put_span, resource

        entry = Cache(Path(sys.argv[1])).layer(LAYER, TOC, SIZE, SPANS.leaves)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
        print(*[int(put_span(entry, span)) for span in SPANS])
    """
    with child(code, tmp_path / "cache") as process:
        took = [bool(int(word)) for word in lines(process, 1)[0].split()]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    assert took[0]
    assert not took[-1]
    with Cache(tmp_path / "cache").layer(LAYER, TOC, SIZE, SPANS.leaves) as entry:
        assert [entry.has(s.first_leaf, s.end_leaf) for s in SPANS] == took
        assert wrong_leaves(DATA, SPANS, entry) == []


def test_below_the_free_space_floor_nothing_is_written_until_there_is_room(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 4 << 20, "tmpfs") as disk:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(1 << 20))
        cache = Cache(disk / "cache")
        store = LayerStore(disk / "cache" / "layers", Scratch(disk / "cache" / "tmp"), "boot")
        space = FreeSpace(disk, floor_bytes=2 << 20, check_every=1 << 18)
        geometry = Geometry(16 << 20, 4096)
        with LayerEntry(store, store.path(LAYER, TOC), geometry, space) as entry:
            results = [entry.put(n << 18, n * 64, b"x" * (1 << 18)) for n in range(8)]
            assert results == sorted(results, reverse=True)
            assert 2 <= results.count(True) <= 4
            assert os.statvfs(disk).f_bavail * 4096 >= (2 << 20) - (2 << 18)
            ballast.unlink()
            assert [entry.put(n << 18, n * 64, b"x" * (1 << 18)) for n in (8, 9)] == [True, True]
        assert cache.usage().kinds["layers"] >= (results.count(True) + 2) << 18
        assert "low=False" in repr(space)


def test_a_vanished_disk_has_no_room(tmp_path: Path) -> None:
    space = FreeSpace(tmp_path / "gone", floor_bytes=0)
    assert not space.admits(1)


def test_opening_twice_at_once_makes_one_entry(tmp_path: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from lazyfs.cache.cache import Cache
        from tests.test_t2_cache_crash import SPANS, SIZE, LAYER, TOC, put_span

        cache = Cache(Path(sys.argv[1]), boot_id=sys.argv[2])
        print("ready")
        sys.stdin.readline()
        entry = cache.layer(LAYER, TOC, SIZE, SPANS.leaves)
        put_span(entry, SPANS[int(sys.argv[3])])
        print("done")
        sys.stdin.readline()
    """
    for boot, after in pairwise(("one", "two", "three")):
        with (
            child(code, tmp_path / "cache", boot, 0) as first,
            child(code, tmp_path / "cache", boot, 1) as second,
        ):
            for process in (first, second):
                assert lines(process, 1) == ["ready"]
            for process in (first, second):
                assert process.stdin is not None
                process.stdin.write(b"\n")
                process.stdin.flush()
            for process in (first, second):
                assert lines(process, 1) == ["done"]
            with Cache(tmp_path / "cache", boot_id=boot).layer(LAYER, TOC, SIZE, SPANS.leaves) as entry:
                assert entry.present(0, SPANS.leaves) == SPANS[1].end_leaf
        with Cache(tmp_path / "cache", boot_id=after).layer(LAYER, TOC, SIZE, SPANS.leaves) as entry:
            assert entry.present(0, SPANS.leaves) == 0
