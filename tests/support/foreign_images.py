"""Images with foreign indexes in the test registry, and opening them as a mount does."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from indexer.digest import sha256_digest
from indexer.spans.scan import Limits
from lazyfs.cache.cache import Cache
from lazyfs.image.image import Image, open_image
from lazyfs.image.indexes.foreign import ForeignIndexes
from lazyfs.image.indexes.indexing import Indexer, IndexSettings
from lazyfs.image.indexes.soci_index import LAYER_KEY, V1_TYPE, V2_KEY, V2_TYPE
from lazyfs.image.inside.browse import entry_at
from lazyfs.image.reading.fetcher import FetchSettings
from lazyfs.image.resolve import Resolver
from lazyfs.image.trust.demands import Demands
from lazyfs.oci.image_name import parse_image
from lazyfs.oci.platform import parse_platform
from lazyfs.source.attachments import RegistryAttachments
from tests.support.foreign_layers import ForeignLayer
from tests.support.images import (
    LAYER_TYPES,
    MANIFEST_TYPES,
    BuiltDocument,
    build_image_from_layers,
    descriptor_of,
    encode,
)
from tests.support.registry import Registry
from tests.support.registry_client import source_of

_PLATFORM = parse_platform("linux/amd64")


def foreign_image(*layers: ForeignLayer, compression: str = "gzip", tell: bool = True) -> BuiltDocument:
    """An image of layers with tables in them, of which the manifest tells, or does not."""
    return build_image_from_layers(
        [layer.blob for layer in layers],
        [sha256_digest(b"not looked at %d" % number) for number in range(len(layers))],
        layer_type=LAYER_TYPES["oci", compression],
        layer_annotations=[layer.annotations if tell else {} for layer in layers],
    )


def soci_image(tars: Sequence[bytes], blobs: Sequence[bytes], index: str = "") -> BuiltDocument:
    """An image of gzip layers, whose manifest names a SOCI index if one is given."""
    return build_image_from_layers(
        blobs, [sha256_digest(tar) for tar in tars], annotations={V2_KEY: index} if index else None
    )


def soci_index(ztocs: Mapping[str, bytes], subject: BuiltDocument | None) -> bytes:
    """A SOCI index of zTOCs by layer digest: version 1 with a subject, else 2."""
    links = [
        descriptor_of(data, "application/octet-stream") | {"annotations": {LAYER_KEY: layer}}
        for layer, data in ztocs.items()
    ]
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPES["oci"],
        "config": descriptor_of(b"{}", V1_TYPE if subject else V2_TYPE),
        "layers": links,
    }
    return encode(manifest | ({"subject": subject.descriptor} if subject else {}))


def push_index(registry: Registry, index: bytes, ztocs: Mapping[str, bytes]) -> str:
    """Store a SOCI index and its zTOCs; its digest."""
    for data in (b"{}", *ztocs.values()):
        registry.put_blob("app", data)
    return registry.put_manifest("app", sha256_digest(index), MANIFEST_TYPES["oci"], index)


@dataclass(frozen=True, slots=True)
class Opened:
    """An open image.

    Attributes:
        image: it.
        registry: where it is.
    """

    image: Image
    registry: Registry

    async def content(self, path: bytes) -> bytes:
        """All of a file."""
        nid = entry_at(self.image.metadata, path).inode.nid
        return b"".join([piece async for piece in self.image.pieces(nid)])

    @property
    def kinds(self) -> list[tuple[str, str]]:
        """Whose indexes the layers are read by, and who vouches for them."""
        return [(index.kind.value, index.vouched_by.value) for index in self.image.indexed]


@asynccontextmanager
async def opened(
    registry: Registry,
    cache_dir: Path,
    demands: Demands | None = None,
    *,
    name: str = "app:1",
    offline: bool = False,
) -> AsyncIterator[Opened]:
    """The image `name` of the test registry, opened with a finder of foreign indexes alone."""
    cache = Cache(cache_dir)
    async with source_of(registry, name) as source:
        resolver = Resolver(source, cache.documents, cache.references, offline=offline)
        resolved = await resolver.resolve(parse_image(f"{registry.host}/{name}"), _PLATFORM)
        attachments = RegistryAttachments(source)
        limits = Limits()
        finder = ForeignIndexes(cache, source, attachments, demands or Demands(), limits, offline=offline)
        indexer = Indexer(cache, IndexSettings(limits=limits))
        async with open_image(resolved, source, indexer, cache, FetchSettings(), [finder]) as image:
            yield Opened(image, registry)
