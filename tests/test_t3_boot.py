"""Boot packs of mounts: found, streamed, waited for; wrong ones cost time only. Counted exactly."""

import gc
from collections.abc import Iterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from indexer.boot_pack import PackHead, decode_pack_head
from indexer.boot_pack_leaves import PackReader
from lazyfs.image.boot.hastening import hasten
from lazyfs.image.boot.pack_artifact import BOOT_TYPE, build_pack_artifact
from lazyfs.image.boot.packs import FoundPack
from lazyfs.image.boot.start import Boot, booting
from lazyfs.image.reading.traffic import Traffic
from lazyfs.oci.descriptor import Descriptor
from lazyfs.source.local.source import LocalBlob
from tests.support.packed_image import (
    FILES,
    IMAGE,
    START,
    blobs,
    made_pack,
    mounted,
    put_pack,
    start,
)
from tests.support.published import index_of, new_key, public_pem, put, registry_with, sign
from tests.support.registry import Registry
from tests.support.registry_faults import Corrupt, Reset, Stall, Status
from tests.support.workshops import Opened


@pytest.fixture
def registry() -> Iterator[Registry]:
    with registry_with(IMAGE) as running:
        yield running


async def settled(found: Opened) -> None:
    """Wait until the pack's stream has ended."""
    boot = found.image.boot
    assert boot is not None
    with trio.fail_after(20):
        await boot.wait_over()


# What a start costs


async def test_a_start_reads_what_the_pack_brings_and_nothing_else(
    registry: Registry, tmp_path: Path
) -> None:
    pack = await made_pack(registry, tmp_path / "maker")
    put_pack(registry, pack.data)
    registry.journal.clear()
    async with mounted(registry, tmp_path / "cache") as found:
        await settled(found)
        await start(found.image, START)
        statistics = found.image.boot.statistics()
        assert (statistics.state, statistics.written, statistics.rejected) == ("done", pack.leaves, 0)
        layers = [layer.digest for layer in found.image.resolved.manifest.layers]
        assert [blobs(registry, digest) for digest in layers] == [0, 0]
        assert blobs(registry, pack.digest) == 1
        # Image, index and pack; configuration, two heads and the pack; one list of all that is attached.
        assert registry.requests == {("GET", "manifest"): 3, ("GET", "blob"): 4, ("GET", "referrers"): 1}
        assert registry.journal.bytes_sent["blob"] < pack.size + 8000
    registry.journal.clear()
    async with mounted(registry, tmp_path / "cache") as found:
        await start(found.image, START)
        await settled(found)
        assert registry.requests == {("GET", "manifest"): 1}
        assert found.image.boot.statistics().state == "done"


async def test_nothing_is_brought_ahead_of_a_start_that_reads_what_the_pack_brings(
    registry: Registry, tmp_path: Path
) -> None:
    in_order = sorted(FILES)[:30]  # more than a megabyte in a row
    put_pack(registry, (await made_pack(registry, tmp_path / "maker", in_order)).data)
    async with mounted(registry, tmp_path / "cache") as found:
        layer = found.image.layers[0]
        await settled(found)
        lacking = layer.missing_spans(0, 1 << 30)
        await start(found.image, in_order)
        assert layer.missing_spans(0, 1 << 30) == lacking  # nor under way


async def test_what_the_pack_lacks_is_fetched_by_span(registry: Registry, tmp_path: Path) -> None:
    put_pack(registry, (await made_pack(registry, tmp_path / "maker")).data)
    registry.journal.clear()
    async with mounted(registry, tmp_path / "cache") as found:
        await start(found.image, [b"f30", b"f31", b"f17"])
        lower = found.image.resolved.manifest.layers[0].digest
        assert 1 <= blobs(registry, lower) <= 2


async def test_who_wants_no_pack_gets_none(registry: Registry, tmp_path: Path) -> None:
    pack = await made_pack(registry, tmp_path / "maker")
    put_pack(registry, pack.data)
    registry.journal.clear()
    async with mounted(registry, tmp_path / "cache", boot_pack=False) as found:
        await start(found.image, START)
        assert found.image.boot is None
    assert blobs(registry, pack.digest) == 0


async def test_that_there_is_none_is_remembered(registry: Registry, tmp_path: Path) -> None:
    for expected in (
        {("GET", "manifest"): 2, ("GET", "blob"): 3, ("GET", "referrers"): 1},
        {("GET", "manifest"): 1},
    ):
        registry.journal.clear()
        async with mounted(registry, tmp_path / "cache") as found:
            await settled(found)
            assert found.image.boot.statistics().state == "none"
        assert registry.requests == expected


async def test_a_pack_that_was_made_here_is_taken_offline(registry: Registry, tmp_path: Path) -> None:
    pack = await made_pack(registry, tmp_path / "cache")
    async with mounted(registry, tmp_path / "cache", offline=True) as found:
        assert await found.image.boot.find() == pack.digest
        await start(found.image, START)


@pytest.mark.parametrize("here", [True, False], ids=["made here", "published"])
async def test_what_brought_a_start_is_not_kept_as_long_as_the_mount(
    registry: Registry, tmp_path: Path, here: bool
) -> None:
    pack = await made_pack(registry, tmp_path / "maker")
    if not here:
        put_pack(registry, pack.data)
    async with mounted(registry, tmp_path / ("maker" if here else "cache")) as found:
        await settled(found)
        boot = found.image.boot
        statistics = boot.statistics()
        assert (statistics.state, statistics.leaves, statistics.size) == ("done", pack.leaves, pack.size)
        gc.collect()
        left = {type(each) for each in gc.get_objects()} & {FoundPack, LocalBlob, PackHead, PackReader}
        assert not left


async def test_layers_that_are_open_already_are_hastened_and_recorded_too(
    registry: Registry, tmp_path: Path
) -> None:
    """As the service does, whose layers are shared by mounts."""
    put_pack(registry, (await made_pack(registry, tmp_path / "maker")).data)
    async with mounted(registry, tmp_path / "cache", boot_pack=False) as found, AsyncExitStack() as stack:
        image, workshop = found.image, found.workshop
        registry.journal.clear()
        packs, layers = workshop.boot_packs, image.by_names
        boot = await stack.enter_async_context(booting(packs, image.resolved, Traffic(), ()))
        boot.attach(layers)
        hastened = await hasten(stack, image.resolved, layers, image.metadata_file, workshop.cache, boot)
        assert hastened.packed
        await boot.wait_over()
        for name in START:
            extent = image.metadata.extent(image.metadata.resolve(name))
            assert extent is not None
            assert image.layers[extent[0]].read_nowait(extent[1], 6) is not None
        assert hastened.tracer.trace().size == 4 * 6
        assert registry.requests == {("GET", "manifest"): 1, ("GET", "blob"): 1}


# Wrong packs


def lying(pack: bytes, where: str) -> bytes:
    head = decode_pack_head(pack)
    at = {"head": 70, "first": head.chunks[0].start + 40, "last": len(pack) - 9}[where]
    return pack[:at] + bytes([pack[at] ^ 255]) + pack[at + 1 :]


@pytest.mark.expect_log("boot pack")
@pytest.mark.parametrize("where", ["head", "first", "last"])
async def test_a_damaged_pack_costs_time_only(registry: Registry, tmp_path: Path, where: str) -> None:
    pack = await made_pack(registry, tmp_path / "maker", list(FILES))
    put_pack(registry, lying(pack.data, where))
    async with mounted(registry, tmp_path / "cache") as found:
        await settled(found)
        await start(found.image, list(FILES))
        written = found.image.boot.statistics().written
        assert (written == 0) == (where == "head")
        assert written < pack.leaves


@pytest.mark.expect_log("made for another index")
async def test_a_pack_for_another_index_is_not_used(registry: Registry, tmp_path: Path) -> None:
    with Registry() as other:
        other.push("app", IMAGE, tag="1")
        put(other, "app", index_of(IMAGE, span_size=128 << 10))
        pack = await made_pack(other, tmp_path / "maker")
    put_pack(registry, pack.data)
    async with mounted(registry, tmp_path / "cache") as found:
        await start(found.image, START)
        await settled(found)
        assert found.image.boot.statistics().written == 0


@pytest.mark.expect_log("boot pack")
@pytest.mark.parametrize("fault", [Status(404), Reset(10_000), Corrupt(5)])
async def test_a_pack_that_does_not_come_costs_time_only(
    registry: Registry, tmp_path: Path, fault: Any
) -> None:
    pack = await made_pack(registry, tmp_path / "maker")
    put_pack(registry, pack.data)
    registry.faults.add("blob", fault, times=9, path=pack.digest)
    async with mounted(registry, tmp_path / "cache") as found:
        await start(found.image, START)


async def test_a_head_larger_than_what_is_held_is_read_all_the_same(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = await made_pack(registry, tmp_path / "maker")
    put_pack(registry, pack.data)
    monkeypatch.setattr("lazyfs.image.boot.pack_stream.MOST_HELD", 100)
    monkeypatch.setattr("lazyfs.image.boot.ordered_ranges._FIRST", 120)
    async with mounted(registry, tmp_path / "cache") as found:
        await settled(found)
        assert found.image.boot.statistics().state == "done"


async def test_readers_do_not_wait_for_a_pack_that_stalls(registry: Registry, tmp_path: Path) -> None:
    pack = await made_pack(registry, tmp_path / "maker")
    put_pack(registry, pack.data)
    registry.faults.add("blob", Stall(1000), times=9, path=pack.digest)
    async with mounted(registry, tmp_path / "cache") as found:
        with trio.fail_after(10):
            await start(found.image, START)
        assert found.image.boot.statistics().state == "coming"
        registry.release()


class Slow:
    """Knows of a pack, but is long in telling."""

    async def find(self, *_: Any, **__: Any) -> None:
        await trio.sleep(1000)


async def test_only_the_first_reader_waits_for_a_pack_that_is_not_found(autojump_clock: Any) -> None:
    boot = Boot(Slow(), None, Traffic())
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(boot.run, ask=True))
        for _ in range(100):
            await boot.settle()
        assert trio.current_time() - began < 0.5
        await boot.end()


@pytest.mark.expect_log("cannot be used")
async def test_a_pack_that_is_gone_from_a_list_is_passed_by(registry: Registry, tmp_path: Path) -> None:
    one = await made_pack(registry, tmp_path / "one")
    put_pack(registry, one.data)
    two = await made_pack(registry, tmp_path / "two", [b"f05"])
    gone = put_pack(registry, two.data, generation=2)
    registry.faults.add("manifest", Status(404), times=9, path=gone)
    async with mounted(registry, tmp_path / "cache") as found:
        await settled(found)
        assert await found.image.boot.find() == one.digest


@pytest.mark.expect_log("boot pack is not used any further")
async def test_a_known_pack_that_is_gone_is_looked_for_anew(registry: Registry, tmp_path: Path) -> None:
    one = await made_pack(registry, tmp_path / "one")
    put_pack(registry, one.data)
    two = await made_pack(registry, tmp_path / "two", [b"f05"])
    registry.faults.add("blob", Status(404), times=9, path=one.digest)
    found = []
    for _ in range(2):
        async with mounted(registry, tmp_path / "cache") as opened:
            await settled(opened)
            found.append(await opened.image.boot.find())
        put_pack(registry, two.data, generation=2)
    assert found == [one.digest, two.digest]


@pytest.mark.expect_log("cannot be used")
async def test_an_artifact_of_another_image_is_passed_by(tmp_path: Path) -> None:
    with Registry(referrers=False) as registry:
        registry.push("app", IMAGE, tag="1")
        put(registry, "app", index_of(IMAGE))
        pack = await made_pack(registry, tmp_path / "maker")
        artifact = build_pack_artifact(Descriptor(IMAGE.media_type, "sha256:" + "7" * 64, 3), pack.data, 1)
        put(registry, "app", _listed_for(artifact))
        async with mounted(registry, tmp_path / "cache") as found:
            await settled(found)
            assert found.image.boot.statistics().state == "none"


def _listed_for(artifact: Any) -> Any:
    """An artifact under the list of an image that it does not speak of."""
    return type(artifact)(artifact.data, artifact.descriptor, IMAGE.digest, artifact.blobs)


# Trust


@pytest.mark.expect_log("the image is named by its digest, and no trusted key signed the index")
async def test_a_pinned_image_takes_packs_like_indexes(registry: Registry, tmp_path: Path) -> None:
    key = new_key()
    (tmp_path / "key.pub").write_bytes(public_pem(key))
    digest = put_pack(registry, (await made_pack(registry, tmp_path / "maker")).data)
    pinned = f"@{IMAGE.digest}"
    async with mounted(registry, tmp_path / "one", tag=pinned) as found:
        await settled(found)
        assert found.image.boot.statistics().state == "none"
    async with mounted(registry, tmp_path / "two", tag=pinned, trust_index=True) as found:
        await settled(found)
        assert found.image.boot.statistics().state == "done"
    sign(registry, "app", digest, key)
    (index,) = [
        seen.digest for seen in await found.workshop.places[0].attachments.referrers(IMAGE.digest, BOOT_TYPE)
    ]
    assert index == digest
