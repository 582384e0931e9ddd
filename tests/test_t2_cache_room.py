"""Room: content goes under live readers and no byte is wrong, quotas hold among processes, pins stay."""

import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from indexer.digest import sha256_digest
from indexer.toc import round_to_block
from lazyfs.cache.cache import Cache
from lazyfs.cache.catalogue import KeptImage
from lazyfs.cache.evictor import Evictor
from lazyfs.cache.files import cache_errors
from lazyfs.cache.free_space import FreeSpace
from lazyfs.cache.keeping import keep_room
from lazyfs.cache.last_use import REGION, last_uses, region_count
from lazyfs.cache.layer_entry import LayerEntry
from lazyfs.cache.room import Room
from tests.support.crash import child, lines, small_disk, stopped
from tests.support.spans import LAYER, TOC, content, spans_of

DATA = content(6_000_007, seed=7)
SPANS = spans_of(DATA, 100_003)
SIZE = round_to_block(len(DATA))
MIB = 1 << 20


def put(entry: LayerEntry, number: int) -> bool:
    span = SPANS[number]
    return entry.put(
        span.uncompressed_start, span.first_leaf, DATA[span.uncompressed_start : span.uncompressed_end]
    )


def read(entry: LayerEntry, number: int) -> bytes | None:
    span = SPANS[number]
    return entry.read_if_here(span.first_leaf, span.end_leaf, span.uncompressed_start, span.size)


def is_right(number: int, data: bytes | None) -> bool:
    span = SPANS[number]
    return data is None or data == DATA[span.uncompressed_start : span.uncompressed_end]


def known(cache: Cache) -> Cache:
    """The cache, which knows the spans of the layer."""
    evictor = Evictor(cache._store, lambda layer, toc: SPANS if (layer, toc) == (LAYER, TOC) else None)
    cache.housekeeper._evictor = evictor
    return cache


def open_entry(cache: Cache) -> LayerEntry:
    return cache.layer(LAYER, TOC, SIZE, SPANS.leaves)


def allocated(root: Path) -> int:
    return sum(path.lstat().st_blocks * 512 for path in root.rglob("*") if path.is_file())


CHURN = """
    import random, sys
    from pathlib import Path
    from lazyfs.cache.cache import Cache
    from tests.test_t2_cache_room import SPANS, is_right, open_entry, put, read

    source = random.Random(int(sys.argv[2]))
    reads = wrong = 0
    with open_entry(Cache(Path(sys.argv[1]))) as entry:
        print("ready")
        for step in range(3000):
            number = source.randrange(12)
            match source.randrange(8):
                case 0:
                    entry.evict([SPANS[n] for n in range(12) if source.random() < 0.5])
                case 1:
                    put(entry, number)
                case 2 if step % 50 == 0:
                    entry.sync()
                case _:
                    data = read(entry, number)
                    reads += data is not None
                    wrong += not is_right(number, data)
    print(reads, wrong)
"""


def test_who_reads_what_others_evict_reads_the_right_bytes_or_none(tmp_path: Path) -> None:
    """Three processes, one of them with readers in threads, read, bring, sync and evict the same spans."""
    counts = {"reads": 0, "wrong": 0}
    stop = threading.Event()

    def reading(entry: LayerEntry, seed: int) -> None:
        source = random.Random(seed)
        while not stop.is_set():
            number = source.randrange(12)
            data = read(entry, number)
            counts["reads"] += data is not None
            counts["wrong"] += not is_right(number, data)

    with (
        child(CHURN, tmp_path / "cache", 1) as one,
        child(CHURN, tmp_path / "cache", 2) as two,
        open_entry(Cache(tmp_path / "cache")) as entry,
    ):
        threads = [threading.Thread(target=reading, args=(entry, seed)) for seed in range(2)]
        for thread in threads:
            thread.start()
        said = [lines(process, 2)[-1].split() for process in (one, two)]
        stop.set()
        for thread in threads:
            thread.join()
    for reads, wrong in said:
        assert int(reads) > 0
        assert int(wrong) == 0
    assert counts["reads"] > 0
    assert counts["wrong"] == 0


def test_a_reader_between_mark_and_bytes_of_an_eviction_looks_again(tmp_path: Path, monkeypatch) -> None:
    """At the worst moment: the mark was seen, the hole is there, and somebody has brought the span again."""
    cache = Cache(tmp_path / "cache")
    with open_entry(cache) as entry, open_entry(cache) as other:
        put(entry, 3)
        real = os.pread
        reads = []

        def late(descriptor: int, size: int, offset: int) -> bytes:
            if not reads:
                other.evict([SPANS[3]])
                reads.append(real(descriptor, size, offset))
                put(other, 3)
                return reads[0]
            reads.append(real(descriptor, size, offset))
            return reads[-1]

        monkeypatch.setattr(os, "pread", late)
        data = read(entry, 3)
        monkeypatch.undo()
        assert reads[0] == bytes(SPANS[3].size)
        assert data == DATA[SPANS[3].uncompressed_start : SPANS[3].uncompressed_end]
        assert len(reads) == 2


def test_a_span_that_is_brought_while_it_is_evicted_is_there_afterwards_or_not_at_all(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    with open_entry(cache) as entry, open_entry(cache) as other:
        for _ in range(40):
            thread = threading.Thread(target=put, args=(other, 0))
            thread.start()
            entry.evict([SPANS[0], SPANS[1]])
            thread.join()
            assert is_right(0, read(entry, 0))
            put(entry, 1)


def test_a_quota_smaller_than_what_is_read_is_kept_and_all_bytes_are_right(tmp_path: Path) -> None:
    quota = 2 * MIB
    cache = known(Cache(tmp_path / "cache", quota_bytes=quota))
    with open_entry(cache) as entry:
        for _ in range(3):
            for number in range(len(SPANS)):
                assert put(entry, number)
                assert read(entry, number) is not None
                assert all(is_right(n, read(entry, n)) for n in range(0, len(SPANS), 7))
                assert allocated(cache.root) <= quota + 2 * (64 << 10)
        here = [n for n in range(len(SPANS)) if read(entry, n) is not None]
    assert len(here) * 100_003 > quota // 3
    assert here[-1] == len(SPANS) - 1


def test_two_processes_share_one_quota(tmp_path: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from lazyfs.cache.cache import Cache
        from tests.test_t2_cache_room import SPANS, SIZE, TOC, is_right, known, put, read

        cache = Cache(Path(sys.argv[1]), quota_bytes=3 << 20)
        refused = wrong = 0
        with cache.layer("sha256:" + sys.argv[2] * 64, TOC, SIZE, SPANS.leaves) as entry:
            for _ in range(3):
                for number in range(len(SPANS)):
                    refused += not put(entry, number)
                    wrong += not all(is_right(n, read(entry, n)) for n in range(0, len(SPANS), 9))
        print(refused, wrong)
    """
    root = tmp_path / "cache"
    Cache(root)
    with child(code, root, 7) as one, child(code, root, 8) as two:
        most = 0
        while one.poll() is None or two.poll() is None:
            with stopped(one), stopped(two):  # what is measured stays as it is
                most = max(most, allocated(root))
            time.sleep(0.002)
        said = [lines(process, 1)[0].split() for process in (one, two)]
    assert [wrong for _, wrong in said] == ["0", "0"]
    assert most <= (3 << 20) + 8 * (64 << 10)
    assert most > 2 << 20


def test_what_was_used_last_goes_last(tmp_path: Path) -> None:
    cache = known(Cache(tmp_path / "cache"))
    with open_entry(cache) as entry:
        for number in range(len(SPANS)):
            put(entry, number)
        entry.note_use()
        time.sleep(0.01)
        assert read(entry, 0) is not None
        assert read(entry, 30) is not None
        entry.note_use()
        assert cache.housekeeper._evictor.make_room(MIB) >= MIB
        assert read(entry, 0) is not None
        assert read(entry, 30) is not None
        assert entry.statistics().present < SPANS.leaves * 3 // 4


def test_use_is_noted_for_other_processes(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    with open_entry(cache) as entry:
        put(entry, 0)
        entry.note_use()
        path = entry.path
    directory = os.open(path, os.O_RDONLY)
    with cache_errors("test"):
        used = last_uses(directory, region_count(SIZE), 5.0)
    os.close(directory)
    assert abs(used[0] - time.time()) < 60
    assert used[1:] == [5.0] * (region_count(SIZE) - 1)
    assert region_count(SIZE) == SIZE // REGION + 1


def image_of(layer: str = LAYER, toc: str = TOC) -> KeptImage:
    return KeptImage("registry.example/app:1", "sha256:" + "a" * 64, (), ((layer, toc),), "b" * 64)


def test_pinned_content_stays_and_more_is_refused(tmp_path: Path) -> None:
    cache = known(Cache(tmp_path / "cache", quota_bytes=2 * MIB))
    cache.catalogue.pin(image_of())
    with open_entry(cache) as entry, cache.layer("sha256:" + "9" * 64, TOC, SIZE, SPANS.leaves) as other:
        took = [number for number in range(len(SPANS)) if put(entry, number)]
        assert 0 < len(took) < len(SPANS)
        assert not put(other, 0)
        assert all(read(entry, number) is not None for number in took)
        assert other.statistics().full
    again = known(Cache(tmp_path / "cache", quota_bytes=MIB))
    assert again.housekeeper.make_room() == 0
    assert [listed.image.pinned for listed in again.catalogue.images()] == [True]
    again.catalogue.note(image_of())
    assert again.catalogue.pinned_layers() == {LAYER}
    again.catalogue.unpin(again.catalogue.images())
    assert again.housekeeper.make_room() > 0


def test_of_an_entry_without_a_table_all_goes_at_once(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    with open_entry(cache) as entry:
        for number in range(20):
            put(entry, number)
        assert cache.housekeeper._evictor.make_room(1) > 20 * 50_000
        assert entry.statistics().present == 0


def test_the_floor_is_kept_by_evicting(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 8 << 20, "tmpfs") as disk:
        cache = known(Cache(disk / "cache", free_floor_bytes=4 << 20))
        with open_entry(cache) as entry:
            for number in range(30):
                put(entry, number)
            (disk / "ballast").write_bytes(bytes(3 << 20))
            cache.housekeeper.tidy()
            assert os.statvfs(disk).f_bavail * 4096 >= 4 << 20
            assert all(is_right(number, read(entry, number)) for number in range(30))
            (disk / "more").write_bytes(bytes(3 << 20))
            cache.housekeeper.tidy()
            assert entry.statistics().present == 0
            assert not put(entry, 0)


def test_more_may_go_than_was_there_when_it_was_measured(tmp_path: Path, monkeypatch) -> None:
    cache = known(Cache(tmp_path / "cache", quota_bytes=100 * MIB, free_floor_bytes=1 << 60))
    with open_entry(known(Cache(tmp_path / "cache"))) as entry:
        put(entry, 0)

        def others_write() -> frozenset[str]:
            assert all(put(entry, number) for number in range(30))
            return frozenset()

        monkeypatch.setattr(cache.catalogue, "pinned_layers", others_write)
        assert cache.housekeeper.make_room() > 30 * 50_000
        assert entry.statistics().present == 0


async def test_room_is_kept_in_the_background(tmp_path: Path, nursery, autojump_clock) -> None:
    import trio

    writer = Cache(tmp_path / "cache")
    cache = known(Cache(tmp_path / "cache", quota_bytes=2 * MIB))
    with open_entry(writer) as entry:
        for number in range(40):
            put(entry, number)
        nursery.start_soon(keep_room, cache)
        end = time.monotonic() + 60  # by the clock of the thread that makes room, not by that of this test
        while allocated(cache.root) > 2 * MIB:
            assert time.monotonic() < end
            await trio.sleep(1)
            await trio.to_thread.run_sync(time.sleep, 0.001)
        nursery.cancel_scope.cancel()


def test_a_layer_that_would_fill_the_quota_is_not_kept_while_it_is_pulled(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", quota_bytes=4 * MIB)
    with cache.fill(LAYER, 3 * MIB) as filling:
        assert not filling.alive
    with cache.fill(LAYER, MIB) as filling:
        filling.write(0, b"x" * MIB)
        assert filling.alive
        for start in range(MIB, 5 * MIB, MIB):
            filling.write(start, b"x" * MIB)
        assert not filling.alive
    assert allocated(cache.root) < MIB


def test_while_room_is_made_for_long_others_are_refused(tmp_path: Path) -> None:
    reclaiming, go_on = threading.Event(), threading.Event()

    def reclaim(size: int) -> None:
        reclaiming.set()
        assert go_on.wait(60)

    room = Room(FreeSpace(tmp_path, floor_bytes=1 << 60), None, reclaim)
    with ThreadPoolExecutor() as threads:
        first = threads.submit(room.admits, 1)
        try:
            assert reclaiming.wait(60)
            others = [threads.submit(room.admits, 1) for _ in range(3)]
            others.append(threads.submit(room.exhausted))
            assert [other.result(timeout=30) for other in others] == [False, False, False, None]
            assert not first.done()
        finally:
            go_on.set()
        assert first.result(timeout=30) is False


def test_what_containers_write_does_not_count(tmp_path: Path) -> None:
    cache = known(Cache(tmp_path / "cache", quota_bytes=2 * MIB))
    changes = cache.root / "containers" / "name" / "changes"
    changes.mkdir(parents=True)
    (changes / "file").write_bytes(bytes(3 * MIB))
    cache.catalogue.note(image_of())
    with open_entry(cache) as entry:
        assert all(put(entry, number) for number in range(10))
        cache.housekeeper.tidy()
        assert cache.housekeeper.excess() == 0
        assert cache.housekeeper.make_room() == 0
        assert all(read(entry, number) is not None for number in range(10))
    assert cache.usage().kinds["containers"] == 3 * MIB
    (cache.root / "room").unlink()
    assert cache.housekeeper.make_room() == 0


def test_a_ledger_that_is_lost_or_garbled_is_measured_anew(tmp_path: Path) -> None:
    cache = known(Cache(tmp_path / "cache", quota_bytes=2 * MIB))
    with open_entry(cache) as entry:
        for number in range(60):
            if number == 10:
                (cache.root / "room").unlink()
            if number == 20:
                (cache.root / "room").write_bytes(b"\xff" * 16)
            if number == 30:
                (cache.root / "room").write_bytes(b"x")
            assert put(entry, number)
            assert allocated(cache.root) <= 2 * MIB + 3 * (64 << 10)


@pytest.mark.parametrize("other_boot", [False, True])
def test_a_read_only_cache_can_be_read(tmp_path: Path, other_boot: bool) -> None:
    import subprocess

    cache = Cache(tmp_path / "cache", boot_id="one")
    with open_entry(cache) as entry:
        put(entry, 0)
        entry.sync()
        put(entry, 1)
    whole, damaged, absent = (sha256_digest(data) for data in (b"whole", b"damaged", b"absent"))
    cache.documents.put(whole, b"whole")
    (cache.root / "documents" / "sha256" / damaged[7:]).write_bytes(b"damage")
    place = tmp_path / "read-only"
    place.mkdir()
    subprocess.run(["mount", "--bind", cache.root, place], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)
    try:
        here = Cache(place, boot_id="two" if other_boot else "one", quota_bytes=MIB)
        with open_entry(here) as entry:
            assert is_right(0, read(entry, 0))
            assert read(entry, 0) is not None
            assert (read(entry, 1) is None) == other_boot
            assert not put(entry, 2)
            assert entry.sync() == 0
            found = [here.documents.get(digest) for digest in (whole, damaged, absent)]
            assert found == [b"whole", None, None]
            with open_entry(Cache(tmp_path / "cache", boot_id="two" if other_boot else "one")) as writer:
                writer.evict([SPANS[0]])
                put(writer, 0)
                assert is_right(0, read(entry, 0))
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)
