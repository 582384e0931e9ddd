"""Layers for Podman: found in images, mounted for as long as somebody uses them, and their blobs."""

import json
import os
import random
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio
from msgspec.structs import replace

from indexer.digest import sha256_digest
from indexer.errors import DigestMismatch
from lazyfs.assembly import open_cache
from lazyfs.errors import CacheError, NotFound
from lazyfs.image.indexes.gathering import index_layers
from lazyfs.mount.forest import ROOT, Forest
from lazyfs.oci.chain import ChainOrder
from lazyfs.service.chains import Chains
from lazyfs.service.content import Content
from lazyfs.service.images import Images
from lazyfs.service.layer_store.raw_blobs import BlobReader, RawBlobs
from lazyfs.service.layer_store.shifted import ShiftedMounts
from lazyfs.service.layer_store.stock import LayerStock, LazyStoredLayer
from lazyfs.service.ledger import Entry
from lazyfs.service.survival.supervisor import Supervisor
from tests.support.images import build_image, build_image_from_layers, compress
from tests.support.published import index_of, put
from tests.support.registry import Registry
from tests.support.registry_faults import Corrupt
from tests.support.tars import file, tar
from tests.support.workshops import config_of

LOWER, UPPER, TWICE = tar(file(b"lower", b"lower " * 10_000)), tar(file(b"upper")), tar(file(b"twice"))
IMAGE = build_image([LOWER, TWICE, UPPER, TWICE])
NEXT = build_image([LOWER, tar(file(b"next"))])
LOWER_BLOB = IMAGE.blobs[IMAGE.json["layers"][0]["digest"]]
DIGESTS = [layer["digest"] for layer in IMAGE.json["layers"]]


@dataclass
class World:
    """Parts of a daemon whose mounts are empty.

    Attributes:
        registry: with the image and its index.
        stock: what is asked.
        images: where that looks.
        chains: what is mounted.
    """

    registry: Registry
    stock: LayerStock
    images: Images
    chains: Chains

    async def find(self, digest: str = DIGESTS[2]) -> LazyStoredLayer:
        return await self.stock.find(f"{self.registry.host}/app:1", digest)

    def states(self) -> dict[str, str]:
        return {mount["layer"]: mount["state"] for mount in self.chains.listed()}


class Empty:
    """A `chains.Driver` whose mounts hold nothing."""

    @asynccontextmanager
    async def mounted(self, entry: Entry, mount_point: Path, note: Any) -> AsyncIterator[str]:
        await trio.Path(mount_point).mkdir(exist_ok=True)
        with trio.CancelScope(shield=True):
            await trio.run_process(["mount", "-t", "tmpfs", "none", mount_point])
        try:
            await note(())
            yield "fuse"
        finally:
            with trio.CancelScope(shield=True):
                await trio.run_process(["umount", mount_point])


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as running:
        running.push("app", IMAGE, tag="1")
        put(running, "app", index_of(IMAGE))
        yield running


@asynccontextmanager
async def world(
    registry: Registry, place: Path, orders: tuple[Entry, ...] = (), **settings: Any
) -> AsyncIterator[World]:
    config = config_of(place, **{"trust_index": True, **settings})
    cache = open_cache(config)
    async with trio.open_nursery() as nursery:
        content = Content(nursery, config, cache, Forest(ROOT), Supervisor(), lambda: None)
        images = content.images
        chains = Chains(nursery, images, Empty(), lambda _: None, place, trio.lowlevel.checkpoint)
        chains.expect(orders)
        blobs = RawBlobs(nursery, images, cache.root / "tmp")
        stock = LayerStock(nursery, images, content.starts, chains, blobs, ShiftedMounts(nursery, place))
        yield World(registry, stock, images, chains)
        nursery.cancel_scope.cancel()


async def wait_until(holds) -> None:
    with trio.fail_after(60):
        while not holds():  # noqa: ASYNC110  # what other tasks do, and what tells nobody
            await trio.sleep(0.01)


async def test_a_layer_is_found_by_its_digest_and_says_what_it_is(registry, tmp_path):
    async with world(registry, tmp_path) as here:
        layer = await here.find()
        assert (layer.order.manifest, layer.order.layers, layer.order.alone) == (IMAGE.digest, 3, True)
        told = json.loads(layer.info)
        assert told["compressed-diff-digest"] == DIGESTS[2]
        assert told["diff-size"] == len(UPPER)
        assert await here.stock.mounted(layer, os.getpid()) == bytes(tmp_path / layer.name)


async def test_a_layer_whose_diff_id_is_only_claimed_is_not_there_until_it_was_seen(registry, tmp_path):
    """What an index or a configuration claims could be that of another image's layer."""
    async with world(registry, tmp_path, trust_index=False) as here:
        with pytest.raises(NotFound, match="only claimed"):
            await here.find()
        order = ChainOrder(f"{registry.host}/app:1", "", 3, DIGESTS[2], "")
        async with here.images.lease(order) as image:
            await index_layers(image.resolved, image.workshop.source, image.workshop.indexer)
        here.images.forget(order)
        assert json.loads((await here.find()).info)["diff-digest"] == sha256_digest(UPPER)


async def test_what_is_used_stays_though_its_diff_id_is_believed_no_more(registry, tmp_path):
    async with world(registry, tmp_path / "a") as here:
        layer = await here.find()
    async with world(registry, tmp_path / "b", (Entry(layer.name, layer.order),), trust_index=False) as here:
        assert (await here.find()).name == layer.name
        with pytest.raises(NotFound, match="only claimed"):
            await here.find(DIGESTS[0])


async def test_the_table_of_another_layer_is_not_this_ones_name(tmp_path):
    table = "sha256:" + "3" * 64
    notes = {"containerd.io/snapshot/stargz/toc.digest": table}
    layer = compress(LOWER, "gzip")
    image = build_image_from_layers([layer], [sha256_digest(LOWER)], layer_annotations=[notes])
    with Registry() as registry:
        registry.push("app", image, tag="1")
        put(registry, "app", index_of(image))
        async with world(registry, tmp_path) as here:
            assert await here.find(sha256_digest(layer))
            with pytest.raises(NotFound, match="not read by its own table"):
                await here.find(table)


@pytest.mark.parametrize("digest", ["sha256:" + "0" * 64, DIGESTS[1]], ids=["unknown", "twice"])
async def test_a_layer_that_is_unknown_or_stands_twice_is_not_there(registry, tmp_path, digest):
    async with world(registry, tmp_path) as here:
        with pytest.raises(NotFound):
            await here.find(digest)


async def test_a_layer_without_an_index_is_not_there_until_it_has_one(tmp_path, clock):
    with Registry() as registry:
        registry.push("app", IMAGE, tag="1")
        async with world(registry, tmp_path) as here:
            with pytest.raises(NotFound, match="no index that may be used"):
                await here.find()
            put(registry, "app", index_of(IMAGE))
            with pytest.raises(NotFound):  # an image is not looked for again with each of its layers
                await here.find()
            clock.jump(11)
            assert (await here.find()).order.layers == 3


async def test_a_tag_that_has_moved_is_followed_and_what_is_used_stays(registry, tmp_path, clock):
    async with world(registry, tmp_path) as here:
        old = await here.find()
        await here.stock.mounted(old, 0)
        here.stock.use(old, +1)
        registry.push("app", NEXT, tag="1")
        put(registry, "app", index_of(NEXT))
        clock.jump(11)
        assert (await here.find(NEXT.json["layers"][1]["digest"])).order.manifest == NEXT.digest
        assert await here.find() == old


async def test_what_the_last_user_lets_go_is_unmounted(registry, tmp_path):
    async with world(registry, tmp_path) as here:
        layer = await here.find()
        await here.stock.mounted(layer, os.getpid())
        for change in (+1, +1, -1):
            here.stock.use(layer, change)
        await wait_until(lambda: here.states() == {DIGESTS[0]: "live", DIGESTS[2]: "live"})
        here.stock.use(layer, -1)
        await wait_until(lambda: here.states() == {DIGESTS[0]: "live"})


async def test_a_mount_stands_for_the_name_by_which_it_is_used(registry, tmp_path):
    registry.push("app", IMAGE, tag="2")
    async with world(registry, tmp_path) as here:
        first = await here.find()
        second = await here.stock.find(f"{registry.host}/app:2", DIGESTS[2])
        await here.stock.mounted(first, 0)

        def ordered() -> str:
            return next(entry.order.image for entry in here.chains.entries() if entry.name == first.name)

        for layer, change, image in ((second, +1, "2"), (first, +1, "2"), (second, -1, "1")):
            here.stock.use(layer, change)
            await wait_until(lambda image=image: ordered() == f"{registry.host}/app:{image}")
        here.stock.use(second, -1)  # as one that a daemon before counted
        await wait_until(lambda: first.name not in here.chains)


async def test_who_asks_for_a_layer_has_all_of_its_image_mounted_but_not_what_stands_twice(
    registry, tmp_path
):
    async with world(registry, tmp_path) as here:
        await here.find(DIGESTS[0])
        await wait_until(lambda: here.states() == {DIGESTS[0]: "live", DIGESTS[2]: "live"})


async def test_what_was_only_looked_at_is_unmounted_after_a_while(registry, tmp_path, clock):
    async with world(registry, tmp_path) as here:
        used = await here.find()
        here.stock.use(used, +1)
        await wait_until(lambda: here.states() == {DIGESTS[0]: "live", DIGESTS[2]: "live"})
        await trio.testing.wait_all_tasks_blocked(0.01)
        clock.jump(61)
        await wait_until(lambda: here.states() == {used.order.layer: "live"})


async def test_what_a_daemon_before_had_is_used_once(registry, tmp_path):
    async with world(registry, tmp_path / "a") as here:
        layer = await here.find()
    async with world(registry, tmp_path / "b", (Entry(layer.name, layer.order),)) as here:
        registry.push("app", NEXT, tag="1")
        assert await here.find() == layer
        await here.stock.mounted(layer, os.getpid())
        here.stock.use(layer, -1)
        await wait_until(lambda: here.states() == {})


async def test_who_keeps_the_mounts_of_chains_has_no_say_in_layers_alone(registry, tmp_path):
    async with world(registry, tmp_path) as here:
        layer = await here.find()
        here.stock.use(layer, +1)
        await here.stock.mounted(layer, os.getpid())
        chain = await here.chains.mount(replace(layer.order, alone=False))
        assert await here.chains.keep([]) == [chain.name]
        assert layer.order.layer in here.states()


async def test_a_blob_comes_once_for_all_who_read_it(registry, tmp_path):
    async with world(registry, tmp_path) as here:
        layer = await here.find(DIGESTS[0])
        registry.journal.clear()
        reader, read = here.stock.open_blob(layer), []

        async def read_some(start: int) -> None:
            read.append((start, await reader.read(start, min(50, layer.size - start))))

        async with trio.open_nursery() as nursery:
            for start in range(0, layer.size, 50):
                nursery.start_soon(read_some, start)
        assert b"".join(data for _, data in sorted(read)) == LOWER_BLOB
        assert registry.requests["GET", "blob"] == 1


async def test_a_blob_that_is_another_one_is_never_read_to_its_end_and_asked_for_again(registry, tmp_path):
    async with world(registry, tmp_path) as here:
        layer = await here.find(DIGESTS[0])
        registry.faults.add("blob", Corrupt(20), path=layer.link.digest)
        readers = [here.stock.open_blob(layer) for _ in range(2)]

        async def fail(reader: BlobReader) -> None:
            with pytest.raises(DigestMismatch):
                await reader.read(layer.size - 1, 1)

        for _ in range(2):  # neither goes on in another copy
            async with trio.open_nursery() as nursery:
                for reader in readers:
                    nursery.start_soon(fail, reader)
        assert await here.stock.open_blob(layer).read(0, layer.size) == LOWER_BLOB


async def test_a_blob_whose_last_piece_the_disk_takes_in_part_only_is_never_read_to_its_end(tmp_path):
    """A file size limit cuts a write short as a disk does that is nearly full: without an error."""
    image = build_image([tar(file(b"noise", random.Random(1).randbytes(100_000)))])
    limit, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Registry() as registry:
        registry.push("app", image, tag="1")
        put(registry, "app", index_of(image))
        async with world(registry, tmp_path) as here:
            layer = await here.find(image.json["layers"][0]["digest"])
            await here.stock.mounted(layer, os.getpid())  # its entry is as large as the layer
            resource.setrlimit(resource.RLIMIT_FSIZE, (layer.size - 100, hard))
            try:
                with pytest.raises(CacheError, match="cannot keep a blob: File too large"):
                    await here.stock.open_blob(layer).read(0, layer.size)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            blob = await here.stock.open_blob(layer).read(0, layer.size)
            assert sha256_digest(blob) == layer.link.digest


async def test_a_copy_of_a_blob_stays_for_as_long_as_it_is_open(registry, tmp_path, clock):
    async with world(registry, tmp_path) as here:
        layer = await here.find(DIGESTS[0])
        registry.journal.clear()
        reader = here.stock.open_blob(layer)
        for _ in range(2):
            assert await reader.read(0, layer.size) == LOWER_BLOB
            clock.jump(60)
            await trio.testing.wait_all_tasks_blocked(0.01)
        assert registry.requests["GET", "blob"] == 1
        reader.close()
        await trio.testing.wait_all_tasks_blocked(0.01)
        clock.jump(60)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert await here.stock.open_blob(layer).read(0, layer.size) == LOWER_BLOB
        assert registry.requests["GET", "blob"] == 2
