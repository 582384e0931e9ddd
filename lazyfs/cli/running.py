"""Runs a command's work on an open image or a workshop, with a progress bar while layers are indexed."""

import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import click
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


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def shown(name: bytes) -> str:
    """A file name as text; bytes that are no UTF-8 come out of a JSON or UTF-8 reader as they went in."""
    return name.decode("utf-8", "surrogateescape")


def write_line(text: str) -> None:
    """A line on stdout, with names that are not UTF-8 written as their own bytes."""
    sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape") + b"\n")
