"""What containers/storage, which Podman and CRI-O keep images in, wants to know of a layer that others keep.

The document is its `Layer` structure in JSON (storage `layers.go`), as far as an additional layer store fills
that. Before containers/storage 1.54 a layer was looked for by its own digest, since then by that of the table
of contents which an annotation names.
"""

import json
from collections.abc import Mapping
from typing import Final

from indexer.toc import Compression
from lazyfs.oci.descriptor import Descriptor

TOC_KEYS: Final = (
    "io.github.containers.zstd-chunked.manifest-checksum",
    "io.containers.zstd-chunked.manifest-checksum",
    "containerd.io/snapshot/stargz/toc.digest",
)
"""Annotations that name a layer's own table of contents by its digest."""

_COMPRESSIONS: Final[Mapping[Compression, int]] = {
    Compression.NONE: 0,
    Compression.GZIP: 2,
    Compression.ZSTD: 4,
}
_DIFF_ID: Final = "expected-layer-diffid"


def toc_digests(layer: Descriptor) -> set[str]:
    """The digests of a layer's own tables of contents, as its annotations claim."""
    return {layer.annotations[key] for key in TOC_KEYS if key in layer.annotations}


def storage_layer(layer: Descriptor, diff_id: str, compression: Compression, size: int, asked: str) -> bytes:
    """The document of a layer.

    Args:
        layer: the link to its blob.
        diff_id: digest of the uncompressed tar.
        compression: of the blob.
        size: bytes of the uncompressed tar; -1 where that is not known.
        asked: the digest by which it was asked for: its own, or that of its table of contents.
    """
    document: dict[str, object] = {
        "compressed-diff-digest": layer.digest,
        "compressed-size": layer.size,
        "diff-size": size,
        "compression": _COMPRESSIONS[compression],
    }
    if asked == layer.digest:
        document["diff-digest"] = diff_id
    else:
        document |= {"toc-digest": asked, "flags": {_DIFF_ID: diff_id}}
    return json.dumps(document).encode()
