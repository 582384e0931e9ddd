"""Layers whose writers put first what a start reads: what is brought of them, and when nothing is."""

import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from lazyfs.assembly import opened
from lazyfs.image.image import Image
from lazyfs.image.reading.traffic import Purpose, TrafficCount
from tests.support.foreign_images import foreign_image
from tests.support.foreign_layers import ForeignLayer, write_layer
from tests.support.registry import Registry
from tests.support.tars import file, tar
from tests.support.workshops import workshop_of

CONTENT = random.Random(5).randbytes(300_000)
FIRST = file(b"start", CONTENT) + file(b"more", CONTENT[:90_000])
LATER = tar(file(b"later", CONTENT[::-1]))
NOTHING = TrafficCount()


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as running:
        yield running


def push(registry: Registry, layer: ForeignLayer) -> None:
    registry.push("app", foreign_image(layer, compression="gzip"), tag="1")


@asynccontextmanager
async def mounted(registry: Registry, cache: Path, **settings: Any) -> AsyncIterator[Image]:
    """The image as a mount opens it."""
    record = settings.pop("record", False)
    async with (
        workshop_of(f"{registry.host}/app:1", cache, **settings) as workshop,
        opened(workshop, mounted=True, record=record) as image,
    ):
        yield image


async def read(image: Image, name: bytes) -> bytes:
    nid = image.metadata.resolve(name)
    assert nid is not None
    return b"".join([piece async for piece in image.pieces(nid)])


async def test_it_is_brought_by_one_request_for_which_nobody_waits(
    registry: Registry, tmp_path: Path
) -> None:
    push(registry, write_layer(LATER, "estargz", chunk_size=100_000, first=FIRST))
    async with mounted(registry, tmp_path / "cache") as image:
        with trio.fail_after(60):
            while image.layers[0].missing_spans(0, 1) != [4]:  # noqa: ASYNC110  # nobody tells
                await trio.sleep(0.01)
        counted = image.traffic.counts()
        assert counted[Purpose.PACK].requests == 1
        assert counted[Purpose.DEMAND] == NOTHING
        assert await read(image, b"start") == CONTENT
        assert await read(image, b"more") == CONTENT[:90_000]
        assert image.traffic.counts() == counted
        assert await read(image, b"later") == CONTENT[::-1]
        assert image.traffic.counts()[Purpose.DEMAND].requests > 0


@pytest.mark.parametrize("settings", [{"boot_pack": False}, {"record": True}], ids=["unwanted", "recorded"])
async def test_who_wants_no_packs_gets_nothing(
    registry: Registry, tmp_path: Path, settings: dict[str, Any]
) -> None:
    push(registry, write_layer(LATER, "estargz", chunk_size=100_000, first=FIRST))
    async with mounted(registry, tmp_path / "cache", **settings) as image:
        await trio.sleep(0.3)
        assert image.traffic.counts()[Purpose.PACK] == NOTHING
