"""What the data daemon knows of images: how often it asks for them, and which it says can be lazy."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from msgspec.structs import replace

from lazyfs.assembly import open_cache
from lazyfs.image.indexes.gathering import index_layers
from lazyfs.image.reading.traffic import Traffic
from lazyfs.oci.chain import ChainOrder
from lazyfs.oci.config import chain_ids
from lazyfs.service.images import Images
from lazyfs.service.ordered import open_ordered, resolve_ordered
from tests.support.images import build_image, build_index
from tests.support.published import index_of, new_key, public_pem, put, sign
from tests.support.registry import Registry
from tests.support.registry_faults import Status
from tests.support.tars import file, tar
from tests.support.workshops import config_of

IMAGE = build_image([tar(file(b"lower", b"lower " * 10_000)), tar(file(b"upper", b"upper\n"))])
OTHER = build_image([tar(file(b"other", b"other\n"))])


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry(referrers=False) as running:
        running.push("app", IMAGE, tag="1")
        yield running


@asynccontextmanager
async def images_in(cache: Path, **settings: Any) -> AsyncIterator[Images]:
    config = config_of(cache, **settings)
    async with trio.open_nursery() as nursery:
        yield Images(nursery, config, open_cache(config), Traffic())
        nursery.cancel_scope.cancel()


def order(registry: Registry, depth: int = 2, **changes: Any) -> ChainOrder:
    layers = [layer["digest"] for layer in IMAGE.json["layers"]]
    whole = ChainOrder(f"{registry.host}/app:1", IMAGE.digest, depth, layers[depth - 1], "")
    return replace(whole, **changes)


async def test_any_number_of_questions_about_an_image_cost_one_look(registry, tmp_path):
    put(registry, "app", index_of(IMAGE))
    async with images_in(tmp_path) as images:
        answers = []

        async def ask(depth: int) -> None:
            answers.append(await images.assess(order(registry, depth)))

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(ask, number % 2 + 1)
        assert answers == [""] * 50
        # The manifest, the configuration, the referrers and their fallback tag, the artifact, two heads.
        assert sum(registry.requests.values()) == 7
        await images.assess(order(registry))
        assert sum(registry.requests.values()) == 7


async def test_images_of_a_registry_share_its_connections(registry, tmp_path):
    others = [f"other{number}" for number in range(8)]
    for name in others:
        registry.push(name, IMAGE, tag="1")
    async with images_in(tmp_path) as images:
        assert await images.assess(order(registry))
        connections = registry.journal.connections
        for name in others:
            assert await images.assess(order(registry, image=f"{registry.host}/{name}:1"))
        assert registry.journal.connections < connections + len(others)


async def test_a_missing_index_is_remembered_until_something_was_done_about_it(registry, tmp_path, clock):
    async with images_in(tmp_path) as images:
        assert "no index that may be used of 2 of 2 layers" in await images.assess(order(registry))
        cost = sum(registry.requests.values())
        put(registry, "app", index_of(IMAGE))
        assert await images.assess(order(registry, 1))
        assert sum(registry.requests.values()) == cost
        images.forget(order(registry))
        assert not await images.assess(order(registry, 1))


async def test_a_missing_index_is_looked_for_again_after_a_while(registry, tmp_path, clock):
    async with images_in(tmp_path) as images:
        assert await images.assess(order(registry))
        put(registry, "app", index_of(IMAGE))
        clock.jump(301)
        assert not await images.assess(order(registry))


async def test_a_registry_that_fails_is_asked_again_soon(registry, tmp_path, clock):
    put(registry, "app", index_of(IMAGE))
    registry.faults.add("manifest", Status(503))
    async with images_in(tmp_path) as images:
        assert await images.assess(order(registry))
        clock.jump(21)
        assert not await images.assess(order(registry))


async def test_an_index_made_here_counts_without_a_question(registry, tmp_path):
    async with open_ordered(order(registry), config_of(tmp_path)) as workshop:
        resolved = await resolve_ordered(order(registry), workshop)
        await index_layers(resolved, workshop.source, workshop.indexer)
    before = sum(registry.requests.values())
    async with images_in(tmp_path) as images:
        assert not await images.assess(order(registry))
    assert sum(registry.requests.values()) == before


async def test_an_index_of_some_layers_is_not_enough(registry, tmp_path):
    put(registry, "app", index_of(build_image([tar(file(b"lower", b"lower " * 10_000))])))
    async with images_in(tmp_path) as images:
        assert await images.assess(order(registry))


async def test_orders_must_fit_the_image(registry, tmp_path):
    put(registry, "app", index_of(IMAGE))
    first, second = [layer["digest"] for layer in IMAGE.json["layers"]]
    right = chain_ids(json.loads(IMAGE.config)["rootfs"]["diff_ids"])
    async with images_in(tmp_path) as images:
        assert not await images.assess(order(registry, chain_id=right[1]))
        assert not await images.assess(order(registry, 1, chain_id=right[0]))
        for wrong in (
            {"chain_id": right[0]},
            {"layer": first},
            {"depth": 1, "layer": second},
            {"layers": 3},
            {"manifest": OTHER.digest},
            {"image": f"{registry.host}/other:1"},
            {"image": "oci:/"},
            {"image": ""},
        ):
            assert await images.assess(order(registry, **wrong)), wrong


async def test_a_client_that_tells_no_manifest_is_served_by_the_tag(registry, tmp_path):
    put(registry, "app", index_of(IMAGE))
    async with images_in(tmp_path) as images:
        assert not await images.assess(order(registry, manifest=""))
        async with images.lease(order(registry, manifest="")) as image:
            assert image.resolved.descriptor.digest == IMAGE.digest


async def test_a_tag_that_moves_is_noticed(registry, tmp_path, clock):
    put(registry, "app", index_of(IMAGE))
    async with images_in(tmp_path) as images:
        assert not await images.assess(order(registry, manifest=""))
        registry.push("app", OTHER, tag="1")
        clock.jump(301)
        assert await images.assess(order(registry, manifest=""))


@pytest.mark.expect_log("the image is named by its digest, and no trusted key signed the index")
async def test_what_is_demanded_is_demanded_of_the_name_as_it_was_given(registry, tmp_path):
    put(registry, "app", index_of(IMAGE))
    pinned = f"{registry.host}/app@{IMAGE.digest}"
    async with images_in(tmp_path) as images:
        assert not await images.assess(order(registry))
        assert await images.assess(order(registry, image=pinned))
    async with images_in(tmp_path / "trusting", trust_index=True) as images:
        assert not await images.assess(order(registry, image=pinned))


async def test_an_image_that_is_signed_as_part_of_an_index_counts_as_signed(registry, tmp_path):
    key = new_key()
    (tmp_path / "key.pub").write_bytes(public_pem(key))
    several = build_index([IMAGE])
    registry.push("app", several, tag="1")
    digest = put(registry, "app", index_of(IMAGE))
    settings = {"require_signature": True, "trusted_keys": (tmp_path / "key.pub",)}
    async with images_in(tmp_path / "cache", **settings) as images:
        assert "is not signed by" in await images.assess(order(registry))
    sign(registry, "app", several.digest, key)
    sign(registry, "app", digest, key)
    async with images_in(tmp_path / "cache", **settings) as images:
        assert not await images.assess(order(registry))
        assert await images.assess(order(registry, manifest=OTHER.digest))
