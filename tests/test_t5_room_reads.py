"""Reads of a layer whose cache takes nothing, or forgets at the worst moment."""

import random
from pathlib import Path

from lazyfs.cache.cache import Cache
from tests.support.crash import small_disk
from tests.test_t3_layer import TAR, MemoryBlob, gzip_layer, lazy
from tests.test_t5_room import fill_up


async def test_where_nothing_can_be_cached_a_sequential_reader_fetches_all_once(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 2 << 20, "tmpfs") as disk:
        cache = Cache(disk / "cache")
        blob = MemoryBlob(gzip_layer(TAR))
        async with lazy(blob, cache) as layer:
            fill_up(disk / "ballast", 0)
            for start in range(0, len(TAR), 20_000):
                size = min(20_000, len(TAR) - start)
                assert await layer.read(start, size) == TAR[start : start + size]
            assert layer.statistics().fetched.spans_fetched <= len(layer.spans) + 1
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

        def put(start: int, first_leaf: int, data: bytes) -> bool:
            layer.entry.evict([span for span in layer.spans if span.first_leaf != first_leaf])
            return real(start, first_leaf, data)

        monkeypatch.setattr(layer.entry, "put", put)
        for _ in range(3):
            assert await layer.read(0, len(TAR)) == TAR
        assert layer.entry.evictions > 0
