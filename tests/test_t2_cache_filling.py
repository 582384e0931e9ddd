"""A layer that is kept while it is pulled for the first time."""

import os
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.toc import round_to_block
from lazyfs.cache.cache import Cache
from lazyfs.cache.files import data_runs
from lazyfs.errors import CacheError
from tests.support.crash import child, kill_after, small_disk
from tests.support.spans import LAYER, TOC, content, spans_of, wrong_leaves

DATA = content(200_001, seed=3)
SPANS = spans_of(DATA, 60_000)
SIZE = round_to_block(len(DATA))


def fill(cache: Cache, cuts: list[int]) -> bool:
    with cache.fill(LAYER) as filling:
        for start, end in pairwise([0, *sorted(cuts), len(DATA)]):
            filling.write(start, DATA[start:end])
        assert filling.written == len(DATA)
        return filling.commit(TOC, SIZE, SPANS.leaves)


def temporary(cache: Cache) -> list[Path]:
    return list((cache.root / "tmp").iterdir())


@given(cuts=st.lists(st.integers(0, len(DATA)), max_size=30))
@settings(max_examples=30)
def test_however_it_is_cut_it_reads_back(cuts: list[int]) -> None:
    with TemporaryDirectory() as directory:
        cache = Cache(Path(directory) / "cache")
        assert fill(cache, cuts)
        assert temporary(cache) == []
        with cache.layer(LAYER, TOC, SIZE, SPANS.leaves) as entry:
            assert entry.complete
            assert wrong_leaves(DATA, SPANS, entry) == []
            assert entry.read(0, SIZE) == DATA.ljust(SIZE, b"\0")


def test_zeros_become_holes(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    with cache.fill(LAYER) as filling:
        filling.write(0, b"x" * 4096 + bytes(1 << 20))
        filling.write((1 << 20) + 4096, b"y" * 4096)
        size = (1 << 20) + 8192
        assert filling.commit(TOC, size, size // 4096)
    with cache.layer(LAYER, TOC, size, size // 4096) as entry:
        assert list(data_runs(entry.fileno(), 0, size)) == [(0, 4096), ((1 << 20) + 4096, size)]


def test_it_counts_in_this_boot_and_later_once_synced(tmp_path: Path) -> None:
    assert fill(Cache(tmp_path / "cache", boot_id="one"), [])
    with Cache(tmp_path / "cache", boot_id="two").layer(LAYER, TOC, SIZE, SPANS.leaves) as entry:
        assert entry.statistics().present == 0
    assert fill(Cache(tmp_path / "cache", boot_id="two"), [])
    with Cache(tmp_path / "cache", boot_id="two").layer(LAYER, TOC, SIZE, SPANS.leaves) as entry:
        assert entry.sync() == SPANS.leaves
    with Cache(tmp_path / "cache", boot_id="three").layer(LAYER, TOC, SIZE, SPANS.leaves) as entry:
        assert entry.complete


def test_a_complete_entry_stays_and_one_with_gaps_is_replaced(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    with cache.layer(LAYER, TOC, SIZE, SPANS.leaves) as before:
        before.put(0, 0, DATA[:4096])
        assert fill(cache, [])
        with cache.layer(LAYER, TOC, SIZE, SPANS.leaves) as entry:
            assert entry.complete
            identity = os.fstat(entry.fileno()).st_ino
        assert before.read(0, 4096) == DATA[:4096]
        assert not before.complete
    assert fill(cache, [5])
    with cache.layer(LAYER, TOC, SIZE, SPANS.leaves) as entry:
        assert os.fstat(entry.fileno()).st_ino == identity
    assert temporary(cache) == []


def test_what_is_discarded_or_out_of_order_leaves_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    with cache.fill(LAYER) as filling:
        filling.write(0, b"x" * 100)
        with pytest.raises(CacheError, match="in order"):
            filling.write(99, b"x")
        assert "100 bytes" in repr(filling)
    assert not filling.alive
    assert not filling.commit(TOC, SIZE, SPANS.leaves)
    filling.write(100, b"after the end")
    assert filling.written == 100
    assert cache.ls() == []
    assert temporary(cache) == []


def test_more_bytes_than_the_layer_has_are_refused(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    for size, leaves in [(8192, 1), (4096, 2)]:
        with cache.fill(LAYER) as filling:
            filling.write(0, b"x" * 4097)
            with pytest.raises(CacheError):
                filling.commit(TOC, size, leaves)
    assert cache.ls() == []


def test_an_empty_layer_can_be_filled(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    with cache.fill(LAYER) as filling:
        assert filling.commit(TOC, 0, 0)
    with cache.layer(LAYER, TOC, 0, 0) as entry:
        assert entry.complete


def test_a_full_disk_ends_it_quietly_and_frees_what_it_took(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 2 << 20, "tmpfs") as disk:
        cache = Cache(disk / "cache")
        with cache.fill(LAYER) as filling:
            for number in range(16):
                filling.write(number << 18, b"x" * (1 << 18))
            assert not filling.alive
            assert filling.written < 2 << 20
            assert not filling.commit(TOC, 4 << 20, 1024)
            assert cache.usage().kinds["tmp"] == 0


def test_a_full_disk_at_the_end_leaves_no_entry(tmp_path: Path) -> None:
    """The presence file does not fit any more."""
    with small_disk(tmp_path / "disk", 2 << 20, "tmpfs") as disk:
        cache = Cache(disk / "cache")
        with cache.fill(LAYER) as filling:
            filling.write(0, b"x")
            assert not filling.commit(TOC, 1 << 40, 1 << 28)
        assert cache.ls() == []
        assert temporary(cache) == []


def test_leftovers_of_dead_processes_go_and_those_of_the_living_stay(tmp_path: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from lazyfs.cache.cache import Cache

        filling = Cache(Path(sys.argv[1])).fill("sha256:" + "1" * 64)
        filling.write(0, b"x" * 10_000)
        print("filling")
        sys.stdin.readline()
    """
    with child(code, tmp_path / "cache") as process:
        kill_after(process, 1)
        cache = Cache(tmp_path / "cache")
        assert temporary(cache) == []
        with cache.fill(LAYER) as filling:
            filling.write(0, DATA)
            Cache(tmp_path / "cache")
            assert filling.commit(TOC, SIZE, SPANS.leaves)
    with cache.layer(LAYER, TOC, SIZE, SPANS.leaves) as entry:
        assert entry.complete
