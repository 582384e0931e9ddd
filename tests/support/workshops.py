"""Images opened as the commands open them, in this process, without waiting for retries."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from lazyfs.assembly import Workshop, open_workshop, opened
from lazyfs.config import Config
from lazyfs.image.image import Image
from lazyfs.oci.image_name import parse_image


class Opened(NamedTuple):
    """An open image and what it was opened with."""

    workshop: Workshop
    image: Image

    @property
    def origins(self) -> list[str]:
        """Of each layer's index: "made here" or "found", as the cache's names tell."""
        return [
            "found" if self._was_found(number) else "made here" for number in range(len(self.image.indexed))
        ]

    def _was_found(self, number: int) -> bool:
        head = self.image.indexed[number].head
        tocs = self.workshop.cache.tocs
        digest = head.header.layer_digest
        names = [name for name in tocs.names(digest) if tocs.load(digest, name, head.digest) is not None]
        return all(name.startswith("toc-") for name in names)

    async def content(self, path: bytes) -> bytes:
        """All of a file."""
        nid = self.image.metadata.resolve(path)
        return b"".join([piece async for piece in self.image.pieces(nid)])


def config_of(cache: Path, **settings: Any) -> Config:
    """A configuration that patience does not need."""
    return Config(
        cache_dir=cache, **({"retries": 0, "platform": "linux/amd64", "span_size_kib": 64} | settings)
    )


@asynccontextmanager
async def workshop_of(name: str, cache: Path, **settings: Any) -> AsyncIterator[Workshop]:
    async with open_workshop(parse_image(name), config_of(cache, **settings)) as workshop:
        yield workshop


@asynccontextmanager
async def image_of(name: str, cache: Path, **settings: Any) -> AsyncIterator[Opened]:
    """The image of this name, open."""
    async with workshop_of(name, cache, **settings) as workshop, opened(workshop) as image:
        yield Opened(workshop, image)
