"""An image of 40 files and a boot pack for it, made of a start that reads four of them."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from lazyfs.assembly import opened
from lazyfs.image.boot.pack_artifact import build_pack_artifact
from lazyfs.image.boot.recording import kept_traces, recorded
from lazyfs.image.boot.trace import Trace
from lazyfs.image.image import Image
from lazyfs.image.optimize import MadePack, make_pack
from lazyfs.oci.descriptor import Descriptor
from tests.support.images import build_image
from tests.support.published import put
from tests.support.registry import Registry
from tests.support.tars import file, tar
from tests.support.workshops import Opened, workshop_of

_RANDOM = random.Random(21)
FILES = {b"f%02d" % n: _RANDOM.randbytes(30_000) + b"text %d" % n * 3000 for n in range(40)}
LOWER = tar(*(file(name, content) for name, content in FILES.items()))
UPPER = tar(file(b"motd", b"hello\n"))
IMAGE = build_image([LOWER, UPPER])
SUBJECT = Descriptor(IMAGE.media_type, IMAGE.digest, len(IMAGE.data))
START = [b"f30", b"f02", b"motd", b"f17"]


@asynccontextmanager
async def mounted(
    registry: Registry, cache: Path, *, record: bool = False, tag: str = ":1", **settings: Any
) -> AsyncIterator[Opened]:
    """The image as a mount opens it."""
    async with (
        workshop_of(f"{registry.host}/app{tag}", cache, **settings) as workshop,
        opened(workshop, mounted=True, record=record) as image,
    ):
        yield Opened(workshop, image)


async def start(image: Image, names: list[bytes]) -> None:
    """Read files page by page, as a process does whose pages are faulted in."""
    for name in names:
        nid = image.metadata.resolve(name)
        for offset in range(0, image.metadata.inode(nid).size, 4096):
            data = await image.read(nid, offset, 4096)
            content = FILES.get(name, b"hello\n")
            assert data == content[offset : offset + 4096]


async def recorded_start(registry: Registry, cache: Path, names: list[bytes]) -> Trace:
    async with mounted(registry, cache, record=True) as found:
        image, kept = found.image, found.workshop.cache
        async with recorded(image.resolved, image.by_names, kept, precise=True, program="start"):
            layers = image.layers
            for name in names:
                nid = image.metadata.resolve(name)
                extent = image.metadata.extent(nid)
                assert extent is not None
                size = image.metadata.inode(nid).size
                for offset in range(0, size, 4096):
                    wanted = (extent[1] + offset, min(4096, size - offset))
                    if layers[extent[0]].read_nowait(*wanted) is None:
                        await layers[extent[0]].read(*wanted)
        (trace,) = [t for t in kept_traces(found.workshop.cache, IMAGE.digest) if t.command == "start"][:1]
        return trace


async def made_pack(registry: Registry, cache: Path, names: list[bytes] = START, **how: bool) -> MadePack:
    trace = await recorded_start(registry, cache, names)
    async with mounted(registry, cache, record=True) as found:
        how = {"publish": False, "replace": False, **how}
        return await make_pack(found.image, found.workshop.boot_packs, [trace], **how)


def put_pack(registry: Registry, pack: bytes, generation: int = 1) -> str:
    return put(registry, "app", build_pack_artifact(SUBJECT, pack, generation))


def blobs(registry: Registry, digest: str) -> int:
    """Requests for this blob."""
    return sum(seen.kind == "blob" and digest in seen.target for seen in registry.seen)
