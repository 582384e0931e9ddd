"""Boot packs that are made: of traces, of packs that are there already, and never of what is not there."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from indexer.boot_pack import MAX_CHUNK, PackLayer, RawChunk, Run, encode_pack
from indexer.errors import FormatError, Unsupported
from indexer.toc import Entry, Proof, Span, SpanTable
from lazyfs.errors import CacheError
from lazyfs.image.boot.pack_artifact import newest_first
from lazyfs.image.boot.trace import Touch, Trace
from lazyfs.image.optimize import make_pack, publish_pack
from lazyfs.image.pack_maker import PackMaker, merge, runs_of_trace
from lazyfs.oci.descriptor import Descriptor
from tests.support.packed_image import IMAGE, START, made_pack, mounted, put_pack, recorded_start, start
from tests.support.published import registry_with
from tests.support.registry import Registry
from tests.support.registry_faults import Status
from tests.test_t3_boot import settled


@pytest.fixture
def registry() -> Iterator[Registry]:
    with registry_with(IMAGE) as running:
        yield running


async def test_packs_of_several_starts_join_and_the_same_again_changes_nothing(
    registry: Registry, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    one = await made_pack(registry, cache, START)
    both = await made_pack(registry, cache, [b"f05", b"f02"])
    again = await made_pack(registry, cache, START)
    assert both.added > 0
    assert both.leaves == one.leaves + both.added
    assert (again.digest, again.added) == (both.digest, 0)
    anew = await made_pack(registry, cache, START, replace=True)
    assert anew.digest == one.digest


async def test_pushing_twice_changes_nothing_and_others_find_it(registry: Registry, tmp_path: Path) -> None:
    async def push(cache: Path, names: list[bytes]) -> tuple[str, bool]:
        trace = await recorded_start(registry, cache, names)
        async with mounted(registry, cache, record=True) as found:
            packs = found.workshop.boot_packs
            pack = await make_pack(found.image, packs, [trace], publish=True, replace=False)
            async with found.workshop.open_publisher() as publisher:
                return await publish_pack(found.image, pack, publisher)

    first, new = await push(tmp_path / "one", START)
    assert new
    assert await push(tmp_path / "one", START) == (first, False)
    assert await push(tmp_path / "two", START) == (first, False)
    second, new = await push(tmp_path / "three", [b"f05"])
    assert new
    async with mounted(registry, tmp_path / "four") as found:
        await settled(found)
        known = await found.workshop.boot_packs.find(found.image.resolved, ask=False)
        assert known is not None
        assert known.generation == 2
        registry.journal.clear()
        await start(found.image, [*START, b"f05"])
        assert not registry.requests
    assert second != first


def test_of_several_packs_the_highest_generation_counts() -> None:
    def link(generation: str, digest: int) -> Descriptor:
        return Descriptor(
            "", f"sha256:{digest:064x}", 1, annotations={"vnd.lazyfs.boot-pack.generation": generation}
        )

    links = [link("2", 1), link("10", 2), link("10", 3), link("x", 4), link("9" * 30, 5)]
    assert [int(found.digest[7:], 16) for found in newest_first(links)] == [3, 2, 1, 5, 4]


def test_merged_starts_wait_for_no_more_than_the_others_want_as_early() -> None:
    one, two = [Run(0, 0, 10)], [Run(1, 0, 3), Run(0, 8, 10), Run(1, 7, 8)]
    merged = merge([one, two])
    order = [(run.layer, leaf) for run in merged for leaf in range(run.first_leaf, run.end_leaf)]
    assert sorted(order) == sorted([*((0, n) for n in range(10)), (1, 0), (1, 1), (1, 2), (1, 7)])
    assert order[:6] == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)]
    assert merge([merged, one]) == merged
    assert merge([merged, two]) == merged


def test_a_trace_that_touches_all_over_and_over_takes_a_moment_only() -> None:
    size, count = 1 << 30, 16
    spans = [
        Span(n, n * size, (n + 1) * size, 0, 0, Entry.RAW, 0, 0, 0, 0, 0, bytes(32), Proof.CONTENT)
        for n in range(count)
    ]
    table, names = SpanTable.from_spans(spans), PackLayer(IMAGE.digest, IMAGE.digest)
    touches = (Touch(0, 5000, 9000, 0), *(Touch(0, 0, table.uncompressed_size, n) for n in range(1000)))
    trace = Trace(
        "image", IMAGE.digest, precise=True, command="", began=0.0, layers=(names,), touches=touches
    )
    assert runs_of_trace(trace, [names], [table]) == [Run(0, 1, 3), Run(0, 0, 1), Run(0, 3, table.leaves)]


@pytest.mark.expect_log("is not added to: boot pack with leaf")
async def test_a_published_pack_of_more_leaves_than_there_are_is_not_added_to(
    registry: Registry, tmp_path: Path
) -> None:
    trace = await recorded_start(registry, tmp_path / "cache", START)
    async with mounted(registry, tmp_path / "cache", record=True) as found:
        most = MAX_CHUNK
        runs = [Run(0, n * most, (n + 1) * most) for n in range(8)]
        chunks = [RawChunk(1, 0, bytes(most))] * len(runs)
        put_pack(registry, encode_pack(PackMaker(found.image).layers, runs, chunks, 1))
        pack = await make_pack(found.image, found.workshop.boot_packs, [trace], publish=True, replace=False)
    assert 30 < pack.leaves < 100


@pytest.mark.expect_log("is not added to: .*404")
async def test_a_published_pack_that_is_gone_is_not_added_to(registry: Registry, tmp_path: Path) -> None:
    gone = await made_pack(registry, tmp_path / "gone", [b"f05"])
    put_pack(registry, gone.data)
    registry.faults.add("blob", Status(404), times=9, path=gone.digest)
    pack = await made_pack(registry, tmp_path / "cache", publish=True)
    assert pack.leaves == pack.added


async def test_a_pack_is_not_made_of_what_the_cache_has_no_room_for(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mounted(registry, tmp_path / "cache", record=True) as found:
        monkeypatch.setattr("lazyfs.cache.layer_entry.LayerEntry.put", lambda *_: False)
        with pytest.raises(CacheError, match="room"):
            await PackMaker(found.image).make([Run(0, 0, 9)])


async def test_traces_of_other_images_and_indexes_make_no_pack(registry: Registry, tmp_path: Path) -> None:
    trace = await recorded_start(registry, tmp_path / "cache", START)
    async with mounted(registry, tmp_path / "cache", record=True) as found:
        maker = PackMaker(found.image)
        assert sum(len(range(*run[1:])) for run in runs_of_trace(trace, maker.layers, maker.tables)) > 30
        with pytest.raises(FormatError, match="another index"):
            runs_of_trace(trace, maker.layers[1:], maker.tables[1:])
        with pytest.raises(FormatError, match="leaf"):
            await maker.make([Run(1, 0, 99)])
        with pytest.raises((FormatError, Unsupported)):
            await make_pack(found.image, found.workshop.boot_packs, [], publish=False, replace=False)
