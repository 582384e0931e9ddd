"""A start that was seen before: the disk reads what it touched before anybody asks."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack

import pytest
import trio

from lazyfs.assembly import opened
from lazyfs.image.boot.hastening import hasten
from lazyfs.image.boot.recording import recorded
from lazyfs.image.boot.warming import warmed
from lazyfs.image.image import Image
from tests.support.images import build_image
from tests.support.page_cache import PAGE, forget, in_memory
from tests.support.registry import Registry
from tests.support.tars import file, tar
from tests.support.workshops import workshop_of

CONTENT = os.urandom(400_000)
IMAGE = build_image([tar(file(b"start", CONTENT), file(b"other", os.urandom(400_000)))])


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as running:
        running.push("app", IMAGE, tag="1")
        yield running


async def wait_until(holds: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while not holds():  # noqa: ASYNC110  # the kernel tells nobody
            await trio.sleep(0.01)


async def touch(image: Image, name: bytes) -> None:
    """Read a file as mounts do."""
    nid = image.metadata.resolve(name)
    extent = image.metadata.extent(nid)
    assert extent is not None
    wanted = (extent[1], image.metadata.inode(nid).size)
    layer = image.layers[extent[0]]
    if layer.read_nowait(*wanted) is None:
        await layer.read(*wanted)


def address_of(image: Image, name: bytes) -> int:
    extent = image.metadata.extent(image.metadata.resolve(name))
    assert extent is not None
    return -(-extent[1] // PAGE) * PAGE


async def test_what_the_last_start_touched_is_read_from_the_disk_at_once(registry, tmp_path):
    async with (
        workshop_of(f"{registry.host}/app:1", tmp_path / "cache") as workshop,
        opened(workshop, mounted=True) as image,
    ):
        await touch(image, b"other")
        async with recorded(image.resolved, image.by_names, workshop.cache, precise=False):
            await touch(image, b"start")
        (layer,) = image.by_names.values()
        number = layer.entry.fileno()
        start, other = address_of(image, b"start"), address_of(image, b"other") + (128 << 10)
        forget(number)
        forget(image.metadata_file)
        assert not in_memory(number, start)
        manifest = image.resolved.descriptor.digest
        async with warmed(manifest, image.by_names, workshop.cache, image.metadata_file):
            for place in (start, start + 300_000 // PAGE * PAGE):
                await wait_until(lambda place=place: in_memory(number, place))
        assert not in_memory(number, other)
        with image.metadata_file.open("rb") as metadata:
            await wait_until(lambda: in_memory(metadata.fileno(), 0))


async def test_whoever_starts_again_in_the_same_mount_is_warmed_by_its_own_trace(registry, tmp_path):
    async with (
        workshop_of(f"{registry.host}/app:1", tmp_path / "cache") as workshop,
        opened(workshop, mounted=True) as image,
        AsyncExitStack() as stack,
    ):
        cache, layers = workshop.cache, image.by_names
        hastened = await hasten(stack, image.resolved, layers, image.metadata_file, cache, None)
        await touch(image, b"start")
        (layer,) = layers.values()
        number, start = layer.entry.fileno(), address_of(image, b"start")
        forget(number)
        forget(image.metadata_file)
        assert not in_memory(number, start)
        hastened.warm()
        await wait_until(lambda: in_memory(number, start))
        with image.metadata_file.open("rb") as metadata:
            await wait_until(lambda: in_memory(metadata.fileno(), 0))


async def test_what_is_not_here_is_not_asked_of_the_disk(registry, tmp_path):
    async with (
        workshop_of(f"{registry.host}/app:1", tmp_path / "cache") as workshop,
        opened(workshop, mounted=True) as image,
    ):
        async with recorded(image.resolved, image.by_names, workshop.cache, precise=False):
            await touch(image, b"start")
        (layer,) = image.by_names.values()
        entry, start = layer.entry, address_of(image, b"start")
        leaves = layer.spans.leaf_range(start, start + PAGE)
        entry.clear([leaves])
        forget(entry.fileno())
        manifest = image.resolved.descriptor.digest
        async with warmed(manifest, image.by_names, workshop.cache, image.metadata_file):
            await wait_until(lambda: in_memory(entry.fileno(), start + (200 << 10)))
        assert not in_memory(entry.fileno(), start)


async def test_a_damaged_trace_keeps_nobody_from_starting(registry, tmp_path, caplog):
    async with (
        workshop_of(f"{registry.host}/app:1", tmp_path / "cache") as workshop,
        opened(workshop, mounted=True) as image,
    ):
        caplog.set_level(logging.INFO)
        manifest = image.resolved.descriptor.digest
        workshop.cache.traces.save(manifest, "1-all.json", b"{}", 8)
        async with warmed(manifest, image.by_names, workshop.cache, image.metadata_file):
            await wait_until(lambda: "not warmed" in caplog.text)
