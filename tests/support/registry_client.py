"""Our own client, set up to talk to the test registry without waiting."""

from contextlib import AbstractAsyncContextManager
from typing import Any

from msgspec.structs import replace

from indexer.digest import sha256_digest
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.platform import Platform
from lazyfs.oci.reference import parse_reference
from lazyfs.source.base import Source
from lazyfs.source.http.retry import RetryPolicy
from lazyfs.source.http.settings import SourceSettings
from lazyfs.source.image import FoundImage, find_image
from lazyfs.source.open import open_registry
from lazyfs.source.registry.source import RegistrySource
from tests.support.registry import Registry

QUICK = RetryPolicy(retries=3, first_delay_s=0.001, most_delay_s=0.002, most_retry_after_s=0.005)
SETTINGS = SourceSettings(retry=QUICK)


def source_of(
    registry: Registry, name: str = "app:1", **settings: Any
) -> AbstractAsyncContextManager[RegistrySource]:
    """A source for `name` in a registry; keywords replace settings."""
    return open_registry(parse_reference(f"{registry.host}/{name}"), replace(SETTINGS, **settings))


async def image_of(source: Source, platform: Platform) -> FoundImage:
    """The image that a source's own name stands for."""
    return await find_image(source.document, await source.resolve(), platform)


def layer_link(data: bytes, **more: Any) -> Descriptor:
    """A descriptor of a layer that holds `data`."""
    return replace(
        Descriptor("application/vnd.oci.image.layer.v1.tar", sha256_digest(data), len(data)), **more
    )
