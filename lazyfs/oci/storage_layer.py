"""What containers/storage, which Podman and CRI-O keep images in, wants to know of a layer that others keep.

The document is its `Layer` structure in JSON (storage `layers.go`), as far as an additional layer store fills
that. Before containers/storage 1.54 a layer was looked for by its own digest, since then by that of the table
of contents which an annotation names.
"""

import json
from collections.abc import Mapping
from typing import Final

from indexer.errors import Unsupported
from indexer.toc import Compression
from lazyfs.oci.descriptor import Descriptor

TOC_KEYS: Final = (
    "io.github.containers.zstd-chunked.manifest-checksum",
    "io.containers.zstd-chunked.manifest-checksum",
    "containerd.io/snapshot/stargz/toc.digest",
)
"""Annotations that name a layer's own table of contents by its digest."""

SIZE_KEY: Final = "io.containers.estargz.uncompressed-size"
"""An annotation with the bytes of the uncompressed layer."""

_COMPRESSIONS: Final[Mapping[Compression, int]] = {
    Compression.NONE: 0,
    Compression.GZIP: 2,
    Compression.ZSTD: 4,
}
_DIGITS: Final = 19
_DIFF_ID: Final = "expected-layer-diffid"


def toc_digests(layer: Descriptor) -> set[str]:
    """The digests of a layer's own tables of contents, as its annotations claim."""
    return {layer.annotations[key] for key in TOC_KEYS if key in layer.annotations}


def claimed_size(layer: Descriptor) -> int | None:
    """Bytes of the uncompressed layer, as an annotation claims; None if none does."""
    text = layer.annotations.get(SIZE_KEY, "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < _DIGITS else None


def storage_layer(
    layer: Descriptor, diff_id: str, compression: Compression, size: int | None, toc_digest: str = ""
) -> bytes:
    """The document of a layer.

    Args:
        layer: the link to its blob.
        diff_id: digest of the uncompressed tar.
        compression: of the blob.
        size: bytes of the uncompressed tar, if they are known; else `toc_digest` must be.
        toc_digest: that of its own table of contents, if it was asked for by that.

    Raises:
        Unsupported: no such document would do.
    """
    document: dict[str, object] = {
        "compressed-diff-digest": layer.digest,
        "compressed-size": layer.size,
        "compression": _COMPRESSIONS[compression],
    }
    if size is not None:
        document |= {"diff-digest": diff_id, "diff-size": size}
    elif not toc_digest:  # containers/storage 1.43 pulls a layer of unknown size, and does not start it
        raise Unsupported(f"nobody tells how large layer {layer.digest} is uncompressed")
    if toc_digest:
        document |= {"toc-digest": toc_digest, "flags": {_DIFF_ID: diff_id}}
    return json.dumps(document).encode()
