"""From an order to its image: where to look for it, and what is demanded of it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from msgspec.structs import replace

from lazyfs.assembly import Workshop, open_workshop
from lazyfs.cache.cache import Cache
from lazyfs.config import Config
from lazyfs.errors import NotFound
from lazyfs.image.resolve import ResolvedImage
from lazyfs.oci.chain import ChainOrder
from lazyfs.oci.image_name import RegistryImage
from lazyfs.oci.reference import parse_reference
from lazyfs.policy import demands_of
from lazyfs.source.http.routes import Routes
from lazyfs.source.image import Seen, nobody_sees


@asynccontextmanager
async def open_ordered(
    order: ChainOrder, config: Config, cache: Cache | None = None, routes: Routes | None = None
) -> AsyncIterator[Workshop]:
    """The workshop for an ordered image, as for the name that it was ordered by.

    That name is always one in a registry: orders come from strangers, and are not to open files here. What
    is demanded is demanded of the name, pinned or not; asked for is the manifest, where it is known. But what
    must be signed is asked for by its name, which may lead through an index that is signed for all platforms.

    Args:
        order: what is ordered.
        config: the configuration.
        cache: the configured cache, where it is open already.
        routes: as for `open_workshop`.

    Raises:
        BadReference: the name is none.
        ConfigError: what is demanded cannot be found out.
        LazyfsError: the cache or the source cannot be opened.
    """
    asked = RegistryImage(parse_reference(order.image))
    demands = demands_of(config, asked)
    by_manifest = RegistryImage(replace(asked.reference, digest=order.manifest or asked.reference.digest))
    name = asked if demands.signed else by_manifest
    async with open_workshop(name, config, cache=cache, demands=demands, routes=routes) as workshop:
        yield workshop


async def resolve_ordered(order: ChainOrder, workshop: Workshop, seen: Seen = nobody_sees) -> ResolvedImage:
    """The ordered image.

    Args:
        order: what is ordered.
        workshop: its image's.
        seen: told of the manifest before the configuration is read.

    Raises:
        NotFound: there is none, or another one under its name by now.
        IndexerError: something of it is damaged.
        LazyfsError: it cannot be had, or must be signed and is not.
    """
    resolved = await workshop.resolve(seen)
    found = resolved.descriptor.digest
    if order.manifest not in {"", found}:
        raise NotFound(f"{order.image} is {found} by now, not {order.manifest}")
    return resolved
