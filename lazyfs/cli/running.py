"""Runs a command's work on open images or a workshop, with a progress bar while layers are indexed."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from lazyfs.api import AsyncImage, open_async
from lazyfs.assembly import Workshop, open_workshop
from lazyfs.cli.progress import PullBar
from lazyfs.config import Config
from lazyfs.oci.image_name import parse_image

T = TypeVar("T")


def with_workshop(config: Config, image: str, work: Callable[[Workshop], Awaitable[T]]) -> T:
    """What `work` makes of the workshop for an image."""
    name = parse_image(image)

    async def run() -> T:
        with PullBar("indexing") as bar:
            async with open_workshop(name, config, bar) as workshop:
                return await work(workshop)

    return trio.run(run)


def with_image(config: Config, image: str, work: Callable[[AsyncImage], Awaitable[T]]) -> T:
    """What `work` makes of an open image."""

    async def run() -> T:
        with PullBar("indexing") as bar:
            async with open_async(image, config=config, progress=bar) as opened:
                return await work(opened)

    return trio.run(run)


def with_two_images(
    config: Config, images: tuple[str, str], work: Callable[[AsyncImage, AsyncImage], Awaitable[T]]
) -> T:
    """What `work` makes of two open images."""

    async def run() -> T:
        with PullBar("indexing") as bar:
            async with (
                open_async(images[0], config=config, progress=bar) as one,
                open_async(images[1], config=config, progress=bar) as other,
            ):
                return await work(one, other)

    return trio.run(run)
