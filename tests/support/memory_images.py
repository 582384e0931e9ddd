"""Open images in memory: real tables, a real merged tree, and layers that are the bytes of their tars.

What a read costs is counted; nothing is fetched, decompressed or kept.
"""

import io
from collections.abc import Sequence
from pathlib import Path

from indexer.compile import compile_image
from indexer.erofs.read import MetadataImage
from indexer.toc_codec import decode_head, encode_toc
from lazyfs.image.image import Image
from lazyfs.image.indexes.indexing import IndexedLayer
from lazyfs.image.resolve import ResolvedImage
from lazyfs.oci.config import image_layers, parse_config
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.manifest import Manifest, parse_document
from tests.support.images import build_image, compress
from tests.support.layers import build


class MemoryLayer:
    """A layer's address space, without a tail."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.bytes_read = 0

    def read_nowait(self, start: int, size: int) -> None:
        """Nothing is local."""

    def has_some(self, start: int, size: int) -> bool:
        return False

    async def read(self, start: int, size: int) -> bytes:
        assert start + size <= len(self.data), "sparse members are not for here"
        self.bytes_read += size
        return self.data[start : start + size]


def memory_image(
    *tars: bytes, compression: str = "none", audited: bool = True, span_size: int = 64 << 10
) -> Image:
    """An open image of these layers, the lowest first."""
    document = build_image(tars, compression=compression)
    manifest = parse_document(document.data, document.media_type)
    assert isinstance(manifest, Manifest)
    config = parse_config(document.config)
    link = Descriptor(document.media_type, document.digest, len(document.data))
    resolved = ResolvedImage(
        name="memory:",
        repository="memory:",
        root=link,
        descriptor=link,
        manifest=manifest,
        config=config,
        layers=image_layers(manifest, config),
        raw_manifest=document.data,
        raw_config=document.config,
    )
    indexed = [_indexed(compress(tar, compression), audited, span_size) for tar in tars]
    out = io.BytesIO()
    compile_image([index.head for index in indexed], out)
    return Image(
        resolved=resolved,
        metadata=MetadataImage(out.getvalue()),
        metadata_file=Path("/nonexistent"),
        layers=[MemoryLayer(tar) for tar in tars],
        indexed=indexed,
    )


def _indexed(blob: bytes, audited: bool, span_size: int) -> IndexedLayer:
    built = build(blob, span_size=span_size)
    return IndexedLayer(decode_head(encode_toc(built.toc)), memoryview(built.windows), audited=audited)


def bytes_read(*images: Image) -> int:
    """Bytes of content that were read of these images."""
    layers: Sequence[MemoryLayer] = [layer for image in images for layer in image.layers]
    return sum(layer.bytes_read for layer in layers)
