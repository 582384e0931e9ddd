"""What containers/storage, which Podman and CRI-O keep images in, wants to know of a layer that others keep.

The document is its `Layer` structure in JSON (storage `layers.go`), as far as an additional layer store fills
that. Before containers/storage 1.54 a layer was looked for by its own digest, and known by that of its
uncompressed tar; since then both are that of the table of contents which an annotation names. Whatever the
store says is believed: another image's layer that is known by the same is taken for the same.
"""

import json
from collections.abc import Collection, Mapping
from typing import Final

from indexer.member_table import Owners
from indexer.toc import Compression
from lazyfs.oci.descriptor import Descriptor

SIZE_KEY: Final = "io.containers.estargz.uncompressed-size"
"""An annotation with the bytes of the uncompressed layer."""

_COMPRESSIONS: Final[Mapping[Compression, int]] = {
    Compression.NONE: 0,
    Compression.GZIP: 2,
    Compression.ZSTD: 4,
}
_DIGITS: Final = 19
_MOST_OWNERS: Final = 1000


def claimed_size(layer: Descriptor) -> int | None:
    """Bytes of the uncompressed layer, as an annotation claims; None if none does."""
    text = layer.annotations.get(SIZE_KEY, "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < _DIGITS else None


def layer_by_digest(
    layer: Descriptor, compression: Compression, diff_id: str, size: int, owners: Owners
) -> bytes:
    """The document of a layer that was asked for by its own digest.

    Args:
        layer: the link to its blob.
        compression: of the blob.
        diff_id: digest of the uncompressed tar, by which it is known.
        size: bytes of the uncompressed tar.
        owners: of what is in it; a namespace that is made to fit an image (`--userns=auto`) has all of them.
    """
    return _document(layer, compression, {"diff-digest": diff_id, "diff-size": size}, owners)


def layer_by_toc(
    layer: Descriptor, compression: Compression, toc_digest: str, diff_id: str, owners: Owners
) -> bytes:
    """The document of a layer that was asked for by the digest of its own table of contents.

    Args:
        layer: the link to its blob.
        compression: of the blob.
        toc_digest: that digest, by which it is known.
        diff_id: what the uncompressed tar is expected to have, should somebody make it.
        owners: as for `layer_by_digest`.
    """
    expected = {"expected-layer-diffid": diff_id}
    return _document(layer, compression, {"toc-digest": toc_digest, "flags": expected}, owners)


def _document(
    layer: Descriptor, compression: Compression, more: Mapping[str, object], owners: Owners
) -> bytes:
    told = {"compressed-diff-digest": layer.digest, "compressed-size": layer.size}
    sets = {"uidset": _highest(owners.users), "gidset": _highest(owners.groups)}
    return json.dumps({**told, "compression": _COMPRESSIONS[compression], **more, **sets}).encode()


def _highest(numbers: Collection[int]) -> list[int]:
    """Those that count: only the highest of all does."""
    return sorted(numbers)[-_MOST_OWNERS:]
