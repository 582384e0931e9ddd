"""Reads of a layer whose cache takes nothing, or forgets at the worst moment."""

import random
from pathlib import Path

import trio

from lazyfs.cache.cache import Cache
from lazyfs.image.auditing import auditor, verify
from lazyfs.image.auditing.audit import Audit
from tests.support.crash import small_disk
from tests.support.published import index_of, put
from tests.support.registry import Registry
from tests.support.workshops import image_of
from tests.test_t3_audit import IMAGE, name, registry, verified
from tests.test_t3_audit import TAR as AUDITED_TAR
from tests.test_t3_layer import TAR, MemoryBlob, gzip_layer, lazy
from tests.test_t5_room import fill_up

__all__ = ["registry"]  # the fixture of the tests of audits


async def test_where_nothing_can_be_cached_a_sequential_reader_fetches_all_once(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 2 << 20, "tmpfs") as disk:
        cache = Cache(disk / "cache")
        blob = MemoryBlob(gzip_layer(TAR))
        async with lazy(blob, cache) as layer:
            fill_up(disk / "ballast", 0)
            for start in range(0, len(TAR), 20_000):
                size = min(20_000, len(TAR) - start)
                assert await layer.read(start, size) == TAR[start : start + size]
            most = max(span.compressed_end - span.compressed_start for span in layer.spans)
            fetched = sum(end - start for start, end in blob.ranges)
            assert fetched <= blob.size + most + len(blob.ranges)  # spans may share a byte
            assert layer.entry.statistics().present == 0
            source = random.Random(5)
            for _ in range(30):
                start = source.randrange(len(TAR))
                assert await layer.read(start, 9) == TAR[start : start + 9]


async def test_content_that_goes_between_two_parts_of_a_read_comes_again(tmp_path: Path, monkeypatch) -> None:
    """Each span that is put takes the others away, as in a cache with room for one."""
    cache = Cache(tmp_path / "cache")
    blob = MemoryBlob(gzip_layer(TAR))
    async with lazy(blob, cache, max_bytes=1) as layer:
        real = layer.entry.put

        def put(start: int, first_leaf: int, data: bytes, end_leaf: int) -> bool:
            layer.entry.evict([span for span in layer.spans if span.first_leaf != first_leaf])
            return real(start, first_leaf, data, end_leaf)

        monkeypatch.setattr(layer.entry, "put", put)
        for _ in range(3):
            assert await layer.read(0, len(TAR)) == TAR
        assert layer.entry.evictions > 0


async def test_an_audit_beside_an_eviction_says_nothing(
    registry: Registry, tmp_path: Path, monkeypatch
) -> None:
    """Holes are no damage and no lie: it is looked at again once all is here again."""
    put(registry, "app", index_of(IMAGE))
    real = auditor.audit_apart
    calls = []
    ended = trio.Event()

    async def beside(data: bytes, head, diff_id: str, entry) -> Audit:
        calls.append(entry.evictions)
        if len(calls) == 1:
            entry.evict(list(head.spans())[:2])
        audit = await real(data, head, diff_id, entry)
        ended.set()
        return audit

    monkeypatch.setattr(auditor, "audit_apart", beside)
    async with image_of(name(registry), tmp_path / "cache") as opened, trio.open_nursery() as nursery:
        watching = auditor.Auditor(auditor.cases_of(opened.image), opened.workshop.cache)
        layer = opened.image.layers[0]
        await layer.read(0, len(AUDITED_TAR))
        nursery.start_soon(watching.run)
        with trio.fail_after(60):
            await ended.wait()
            assert not layer.entry.complete
            while watching.statistics().audited == 0:  # nobody tells of it
                assert await layer.read(0, len(AUDITED_TAR)) == AUDITED_TAR
                await trio.sleep(0.01)
    assert len(calls) == 2
    assert watching.statistics().lying == ()


async def test_verifying_beside_an_eviction_takes_the_layer_from_its_source(
    registry: Registry, tmp_path: Path, monkeypatch
) -> None:
    put(registry, "app", index_of(IMAGE))
    real = verify.cached_pieces

    def beside(entry, size: int):
        for number, piece in enumerate(real(entry, size)):
            yield piece
            if number == 0:
                entry.evict([])

    async with image_of(name(registry), tmp_path / "cache") as opened:
        await opened.image.layers[0].read(0, len(AUDITED_TAR))
        (here,) = await verified(name(registry), tmp_path / "cache")
        assert here.verdict.bytes_from is verify.From.CACHE
        monkeypatch.setattr(verify, "cached_pieces", beside)
        (there,) = await verified(name(registry), tmp_path / "cache")
        assert there.verdict.bytes_from is verify.From.SOURCE
        assert there.passed


async def test_an_audited_layer_without_windows_can_be_evicted_and_read_again(
    registry: Registry, tmp_path: Path
) -> None:
    """Complete, it needs no windows; evicted in part, it fetches those that it needs."""
    put(registry, "app", index_of(IMAGE))
    async with image_of(name(registry), tmp_path / "cache") as opened, trio.open_nursery() as nursery:
        nursery.start_soon(auditor.Auditor(auditor.cases_of(opened.image), opened.workshop.cache).run)
        assert await opened.image.layers[0].read(0, len(AUDITED_TAR)) == AUDITED_TAR
    for path in (tmp_path / "cache" / "tocs").rglob("*.windows"):
        path.unlink()
    async with image_of(name(registry), tmp_path / "cache") as opened:
        layer = opened.image.layers[0]
        assert opened.image.indexed[0].audited
        assert len(opened.image.indexed[0].windows) == 0
        asked = len(registry.seen)
        assert await layer.read(0, len(AUDITED_TAR)) == AUDITED_TAR
        assert len(registry.seen) == asked
        layer.entry.evict(list(layer.spans)[1:3])
        assert await layer.read(0, len(AUDITED_TAR)) == AUDITED_TAR
