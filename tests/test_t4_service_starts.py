"""Starts that are foreseen: what is here before the container is, and what it costs. Counted exactly."""

import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trio
from msgspec.structs import replace
from trio.testing import MockClock

from indexer.boot_pack import PackLayer
from indexer.compile import image_key
from indexer.digest import sha256_digest
from lazyfs.assembly import open_cache
from lazyfs.cache.cache import Cache
from lazyfs.image.tasks import open_tasks
from lazyfs.mount.forest import ROOT, Forest
from lazyfs.oci.chain import ChainOrder
from lazyfs.service.content import Content
from lazyfs.service.images import Images
from lazyfs.service.layers import Layers
from lazyfs.service.starts import Starts
from lazyfs.service.survival.supervisor import Supervisor
from lazyfs.service.tree import Trees
from tests.support.elf import elf
from tests.support.foreign_images import foreign_image
from tests.support.foreign_layers import write_layer
from tests.support.images import build_image
from tests.support.packed_image import IMAGE, blobs, made_pack, put_pack
from tests.support.published import index_of, put, registry_with
from tests.support.registry import Registry
from tests.support.registry_faults import StallHead, Status
from tests.support.tars import file, tar
from tests.support.workshops import config_of

LAYERS = [layer["digest"] for layer in IMAGE.json["layers"]]
NEXT = build_image([tar(file(b"next", b"next\n"))])


class Parts(NamedTuple):
    """Of a data daemon."""

    cache: Cache
    images: Images
    layers: Layers
    starts: Starts
    trees: Trees


@pytest.fixture
def registry() -> Iterator[Registry]:
    """With the image and its index."""
    with registry_with(IMAGE) as running:
        yield running


@asynccontextmanager
async def parts(place: Path, **settings: Any) -> AsyncIterator[Parts]:
    config = config_of(place, **settings)
    cache = open_cache(config)
    async with trio.open_nursery() as nursery:
        content = Content(nursery, config, cache, Forest(ROOT), Supervisor(), lambda: None)
        yield Parts(cache, content.images, content.layers, content.starts, content.trees)
        nursery.cancel_scope.cancel()


def order(registry: Registry, depth: int = 2) -> ChainOrder:
    """By the tag, as plain clients of containerd name an image."""
    return ChainOrder(f"{registry.host}/app:1", "", depth, LAYERS[depth - 1], "")


def pinned(registry: Registry) -> ChainOrder:
    """As mounts do."""
    return replace(order(registry), manifest=IMAGE.digest)


def order_next(registry: Registry) -> ChainOrder:
    """What the tag is moved to."""
    return ChainOrder(f"{registry.host}/app:1", "", 1, NEXT.json["layers"][0]["digest"], "")


def push_next(registry: Registry) -> None:
    registry.push("app", NEXT, tag="1")
    put(registry, "app", index_of(NEXT))


async def wait_until(holds: Callable[[], bool]) -> None:
    with trio.fail_after(60):
        while not holds():  # noqa: ASYNC110  # what worker threads do, and what tells nobody
            await trio.sleep(0.01)


async def compiled(daemon: Parts, wanted: ChainOrder) -> None:
    """Wait until the tree of an image is in the cache, which nobody has mounted."""
    async with daemon.images.lease(wanted) as image:
        digests = [layer.descriptor.digest for layer in image.resolved.layers]
        key = image_key([image.indexed[digest].head.digest for digest in digests])
        await wait_until(lambda: daemon.cache.images.path(key) is not None)


async def assess(daemon: Parts, wanted: ChainOrder) -> str:
    """What the daemon does when it is asked whether an image can be lazy."""
    why = await daemon.images.assess(wanted)
    if not why:
        daemon.starts.foresee(wanted)
    return why


async def test_pack_and_tree_are_here_before_the_image_is_mounted(registry: Registry, tmp_path: Path) -> None:
    pack = await made_pack(registry, tmp_path / "maker")
    put_pack(registry, pack.data)
    registry.journal.clear()
    async with parts(tmp_path / "cache") as daemon, AsyncExitStack() as stack:
        for depth in (1, 2):
            assert not await assess(daemon, order(registry, depth))
        await compiled(daemon, order(registry))
        async with daemon.starts.lease(pinned(registry)) as boot:
            assert boot is not None
            with trio.fail_after(60):
                await boot.wait_over()
            assert boot.statistics().written == pack.leaves
        # Image, index and pack; configuration, two heads and the pack; one list of all that is attached.
        cost = {("GET", "manifest"): 3, ("GET", "blob"): 4, ("GET", "referrers"): 1}
        assert registry.requests == cost
        tree = await daemon.trees.open(pinned(registry), stack)
        assert [layer.names.layer_digest for layer in tree.layers] == LAYERS
        assert registry.requests == cost
        # Whatever becomes of the tag, the next daemon finds them.
        assert {file.order.manifest for file in daemon.layers.saved() if file.order} == {IMAGE.digest}


async def test_where_the_manifest_is_known_indexes_are_asked_for_before_it_is_here(
    registry: Registry, tmp_path: Path
) -> None:
    """As CRI orders, whose labels name it. One list of what is attached does for all."""
    registry.faults.add("manifest", StallHead())
    async with parts(tmp_path / "cache") as daemon, open_tasks() as nursery:
        nursery.start_soon(assess, daemon, pinned(registry))
        await trio.to_thread.run_sync(registry.wait_stalled)
        await wait_until(lambda: registry.requests["GET", "referrers"] == 1)
        registry.release()
    assert registry.requests == {("GET", "manifest"): 2, ("GET", "blob"): 3, ("GET", "referrers"): 1}


async def test_whose_indexes_were_made_here_asks_for_none(registry: Registry, tmp_path: Path) -> None:
    await made_pack(registry, tmp_path / "cache")
    registry.journal.clear()
    async with parts(tmp_path / "cache") as daemon:
        assert not await daemon.images.assess(pinned(registry))
    assert registry.requests["GET", "referrers"] == 0


async def test_the_stream_does_not_wait_for_the_indexes(registry: Registry, tmp_path: Path) -> None:
    put_pack(registry, (await made_pack(registry, tmp_path / "maker")).data)
    async with parts(tmp_path / "cache") as daemon:
        assert not await daemon.images.assess(order(registry))
        async with daemon.images.lease(order(registry)) as image:
            boot = image.boot
            assert boot is not None
            await wait_until(lambda: boot.statistics().received > 0)


async def test_what_stands_before_a_landmark_is_brought_for_a_start(tmp_path: Path) -> None:
    content = random.Random(1).randbytes(90_000)
    layer = write_layer(tar(file(b"b", content)), "estargz", first=file(b"a", content[:50_000]))
    image = foreign_image(layer)
    with Registry() as registry:
        registry.push("app", image, tag="1")
        wanted = ChainOrder(f"{registry.host}/app:1", image.digest, 1, sha256_digest(layer.blob), "")
        async with parts(tmp_path / "cache") as daemon, AsyncExitStack() as stack:
            assert not await assess(daemon, wanted)
            await compiled(daemon, wanted)
            (shown,) = (await daemon.trees.open(wanted, stack)).layers
            await wait_until(lambda: shown.lazy.missing_spans(0, 1 << 30) == [1, 2])


async def test_what_the_images_program_needs_is_brought_for_a_start(tmp_path: Path) -> None:
    program = elf([b"libx.so"], interpreter=b"/ld.so")
    noise = [random.Random(number).randbytes(200_000) for number in range(3)]
    lower = tar(file(b"noise", noise[0]), file(b"usr/lib/libx.so", elf()), file(b"other", noise[1]))
    upper = tar(file(b"more", noise[2]), file(b"bin/app", program), file(b"ld.so", elf()))
    image = build_image([lower, upper], process={"Entrypoint": ["app"], "Env": ["PATH=/bin"]})
    link = image.json["layers"][1]["digest"]
    with registry_with(image) as registry:
        wanted = ChainOrder(f"{registry.host}/app:1", image.digest, 2, link, "")
        async with parts(tmp_path / "cache") as daemon, AsyncExitStack() as stack:
            assert not await assess(daemon, wanted)
            await compiled(daemon, wanted)
            layers = [shown.lazy for shown in (await daemon.trees.open(wanted, stack)).layers]
            size = len(file(b"usr/lib/libx.so", elf()))
            await wait_until(lambda: layers[0].peek(len(file(b"noise", noise[0])), size) is not None)
            await wait_until(lambda: layers[1].peek(len(file(b"more", noise[2])), 2048) is not None)
            assert layers[0].missing_spans(0, 1 << 30)
            assert layers[1].missing_spans(0, 1 << 30)


async def test_nothing_is_streamed_on_for_an_image_that_cannot_be_lazy(tmp_path: Path) -> None:
    with registry_with(IMAGE) as registry:
        pack = await made_pack(registry, tmp_path / "maker")
    with Registry() as other:
        other.push("app", IMAGE, tag="1")
        put_pack(other, pack.data)
        async with parts(tmp_path / "cache") as daemon:
            assert "no index" in await assess(daemon, order(other))
            async with daemon.images.lease(order(other)) as image:
                assert image.boot is not None
                assert image.boot.is_over
            async with daemon.starts.lease(pinned(other)) as boot:
                assert boot is None


async def test_nothing_is_streamed_on_for_layers_that_are_others(registry: Registry, tmp_path: Path) -> None:
    put_pack(registry, (await made_pack(registry, tmp_path / "maker")).data)
    async with parts(tmp_path / "cache") as daemon:
        wanted = replace(order(registry), chain_id=LAYERS[0])
        assert "chainID" in await assess(daemon, wanted)
        async with daemon.images.lease(wanted) as image:
            assert image.boot is not None
            assert image.boot.is_over


async def test_who_wants_no_packs_gets_none(registry: Registry, tmp_path: Path) -> None:
    pack = await made_pack(registry, tmp_path / "maker")
    put_pack(registry, pack.data)
    registry.journal.clear()
    async with parts(tmp_path / "cache", boot_pack=False) as daemon:
        assert not await assess(daemon, order(registry))
        async with daemon.starts.lease(pinned(registry)) as boot:
            assert boot is None
    assert blobs(registry, pack.digest) == 0


async def test_a_start_that_nobody_came_for_ends_and_the_next_begins_anew(
    registry: Registry, tmp_path: Path, mock_clock: MockClock
) -> None:
    mock_clock.rate = 1
    put_pack(registry, (await made_pack(registry, tmp_path / "maker")).data)
    async with parts(tmp_path / "cache") as daemon:
        assert not await assess(daemon, order(registry))
        async with daemon.starts.lease(pinned(registry)) as first:
            assert first is not None
            await first.wait_over()
        mock_clock.jump(11)
        await wait_until(lambda: "Pool of 0" in repr(daemon.starts))
        async with daemon.starts.lease(pinned(registry)) as second:
            assert second is not None
            assert second is not first
            await second.wait_over()
            assert second.statistics().state == "done"


async def test_a_tag_and_its_manifest_are_one_image(registry: Registry, tmp_path: Path) -> None:
    async with parts(tmp_path / "cache", boot_pack=False) as daemon:
        assert not await daemon.images.assess(order(registry))
        cost = sum(registry.requests.values())
        async with (
            daemon.images.lease(order(registry)) as by_tag,
            daemon.images.lease(pinned(registry)) as by_manifest,
        ):
            assert by_manifest is by_tag
        assert not await daemon.images.assess(pinned(registry))
        assert sum(registry.requests.values()) == cost
        daemon.images.forget(order(registry))
        async with daemon.images.lease(pinned(registry)) as another:
            assert another is not by_tag


@pytest.mark.expect_log("leaves of the boot pack were wrong")
async def test_of_a_damaged_pack_the_mount_does_without(registry: Registry, tmp_path: Path) -> None:
    pack = await made_pack(registry, tmp_path / "maker")
    put_pack(registry, pack.data[:-20] + bytes(20))
    async with parts(tmp_path / "cache") as daemon, AsyncExitStack() as stack:
        assert not await assess(daemon, order(registry))
        tree = await daemon.trees.open(pinned(registry), stack)
        async with daemon.starts.lease(pinned(registry)) as boot:
            assert boot is not None
            await boot.wait_over()
        assert len(tree.layers) == len(LAYERS)


async def test_where_a_tag_leads_is_asked_again_while_its_old_image_runs(
    registry: Registry, tmp_path: Path, mock_clock: MockClock
) -> None:
    mock_clock.rate = 1
    async with parts(tmp_path / "cache", boot_pack=False) as daemon, AsyncExitStack() as stack:
        async with daemon.images.lease(order(registry)):  # as a mount does after a restart
            await daemon.trees.open(pinned(registry), stack)
        push_next(registry)
        mock_clock.jump(61)
        assert not await daemon.images.assess(order_next(registry))


async def test_what_a_tag_was_moved_to_is_foreseen_while_its_old_image_runs(
    registry: Registry, tmp_path: Path
) -> None:
    async with parts(tmp_path / "cache") as daemon, AsyncExitStack() as stack:
        assert not await assess(daemon, order(registry))
        await daemon.trees.open(pinned(registry), stack)
        push_next(registry)
        daemon.images.forget(order(registry))
        assert not await assess(daemon, order_next(registry))
        await compiled(daemon, order_next(registry))


async def test_that_there_was_no_pack_does_not_hold_once_there_are_indexes(tmp_path: Path) -> None:
    with registry_with(IMAGE) as registry:
        pack = await made_pack(registry, tmp_path / "maker")
    with Registry() as late:
        late.push("app", IMAGE, tag="1")
        async with parts(tmp_path / "cache") as daemon:
            assert "no index" in await assess(daemon, order(late))
            put(late, "app", index_of(IMAGE))
            put_pack(late, pack.data)
            daemon.images.forget(order(late))
            assert not await assess(daemon, order(late))
            async with daemon.starts.lease(pinned(late)) as boot:
                assert boot is not None
                await boot.wait_over()
                assert boot.statistics().written == pack.leaves


@pytest.mark.expect_log("boot pack is not used any further")
async def test_a_hiccup_while_the_image_is_pulled_does_not_cost_the_mount_its_pack(
    registry: Registry, tmp_path: Path
) -> None:
    pack = await made_pack(registry, tmp_path / "maker")
    put_pack(registry, pack.data)
    registry.faults.add("blob", Status(404), path=pack.digest)
    async with parts(tmp_path / "cache") as daemon:
        assert not await assess(daemon, order(registry))
        async with daemon.images.lease(order(registry)) as image:
            assert image.boot is not None
            await image.boot.wait_over()
            assert image.boot.statistics().state == "failed"
        await compiled(daemon, order(registry))
        with trio.fail_after(60):
            state = "failed"
            while state == "failed":  # until nobody is given the failed one any more
                async with daemon.starts.lease(pinned(registry)) as boot:
                    assert boot is not None
                    await boot.wait_over()
                    state = boot.statistics().state
        assert (state, boot.statistics().written) == ("done", pack.leaves)


async def test_a_start_of_other_tables_is_not_the_trees(registry: Registry, tmp_path: Path) -> None:
    async with parts(tmp_path / "cache") as daemon:
        assert not await assess(daemon, order(registry))
        async with (
            daemon.starts.lease(pinned(registry)) as boot,
            daemon.images.lease(pinned(registry)) as image,
        ):
            assert boot is not None
            names = [PackLayer(digest, image.indexed[digest].head.digest) for digest in LAYERS]
            assert boot.serves(names)
            assert not boot.serves([*names, PackLayer(LAYERS[0], LAYERS[1])])
