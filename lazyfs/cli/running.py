"""Runs a command's work on an open image or a workshop, with a progress bar while layers are indexed."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from lazyfs.assembly import Workshop, open_workshop, opened
from lazyfs.cli.progress import PullBar
from lazyfs.config import Config
from lazyfs.image.image import Image
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


def with_image(config: Config, image: str, work: Callable[[Image], Awaitable[T]]) -> T:
    """What `work` makes of an open image."""

    async def run(workshop: Workshop) -> T:
        async with opened(workshop) as open_image:
            return await work(open_image)

    return with_workshop(config, image, run)
