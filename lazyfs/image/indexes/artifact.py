"""The index of an image as an OCI artifact (docs/index-format.md): values to documents, and back.

One artifact per image manifest. Its layers are, for each layer of the image that was indexed, the head of
the table of contents and the windows file, both annotated with the digest of the layer they speak of.
The same index gives the same bytes: no time, no name, no machine stands in them.
"""

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from msgspec import Struct

from indexer.digest import sha256_digest
from indexer.errors import FormatError, LimitExceeded, Unsupported
from indexer.toc import Proof
from indexer.toc_codec import TocHead, decode_head
from lazyfs.image.indexes.attachment import build_attachment, parse_attachment
from lazyfs.oci.descriptor import Descriptor, readable_digest
from lazyfs.source.push.artifact import Artifact

INDEX_TYPE: Final = "application/vnd.lazyfs.index.v1+json"
TOC_TYPE: Final = "application/vnd.lazyfs.toc.v1"
WINDOWS_TYPE: Final = "application/vnd.lazyfs.windows.v1"
LAYER_KEY: Final = "vnd.lazyfs.layer.digest"

MAX_HEAD: Final = 128 << 20
"""Bytes of a head that is fetched; one with a million members has about 10 MB."""

_MAX_LAYERS: Final = 500
_MAX_DECODED: Final = 512 << 20  # four million members, as many as are taken from a tar


class LayerIndex(NamedTuple):
    """What an artifact holds of one layer.

    Attributes:
        head: link to the head.
        windows: link to the windows file; None where no span has a window.
    """

    head: Descriptor
    windows: Descriptor | None


class LayerFiles(Struct, frozen=True):
    """What is published of one layer.

    Attributes:
        layer_digest: digest of the layer's blob.
        head: the encoded table of contents.
        windows: its windows file, maybe empty.
    """

    layer_digest: str
    head: bytes
    windows: bytes | memoryview


def build_artifact(subject: Descriptor, layers: Iterable[LayerFiles]) -> Artifact:
    """The artifact of an image's index.

    Args:
        subject: link to the image's manifest, with its type and size.
        layers: what is indexed, each layer once, the lowest first.

    Raises:
        LimitExceeded: too many layers for one manifest.
    """
    blobs: list[tuple[Descriptor, bytes | memoryview]] = []
    for layer in layers:
        blobs.append(_blob(TOC_TYPE, layer.head, layer.layer_digest))
        if layer.windows:
            blobs.append(_blob(WINDOWS_TYPE, layer.windows, layer.layer_digest))
    if len(blobs) > 2 * _MAX_LAYERS:
        raise LimitExceeded(f"an index of more than {_MAX_LAYERS} layers")
    return build_attachment(INDEX_TYPE, subject, blobs)


def _blob(media_type: str, data: bytes | memoryview, layer: str) -> tuple[Descriptor, bytes | memoryview]:
    link = Descriptor(media_type, sha256_digest(data), len(data), annotations={LAYER_KEY: layer})
    return link, data


def parse_artifact(data: bytes, subject: str) -> Mapping[str, LayerIndex]:
    """What an artifact holds, by layer digest. Blobs of unknown types are passed by.

    Args:
        data: the manifest's bytes.
        subject: digest of the image's manifest.

    Raises:
        FormatError: it is no index, or that of another image, or has two for a layer.
        Unsupported: its digests cannot be checked.
        LimitExceeded: a head is too large.
    """
    manifest = parse_attachment(data, INDEX_TYPE, subject, "index")
    found: dict[str, dict[str, Descriptor]] = {TOC_TYPE: {}, WINDOWS_TYPE: {}}
    for link in manifest.layers:
        if link.media_type not in found:
            continue
        layer = link.annotations.get(LAYER_KEY)
        if layer is None:
            raise FormatError("index with a blob that does not say of which layer it is")
        readable_digest(link.digest)
        if found[link.media_type].setdefault(readable_digest(layer), link) is not link:
            raise FormatError(f"index with two blobs of one kind for layer {layer}")
        if link.media_type == TOC_TYPE and link.size > MAX_HEAD:
            raise LimitExceeded(f"head of {link.size} bytes, more than {MAX_HEAD}")
    windows = found[WINDOWS_TYPE]
    return {layer: LayerIndex(head, windows.get(layer)) for layer, head in found[TOC_TYPE].items()}


def check_head(data: bytes, toc_digest: str, layer: Descriptor, diff_id: str) -> TocHead:
    """The head of a layer of an image, which speaks of this layer and agrees with the image's documents.

    Whether it tells the truth, only the layer itself can show: the audit.

    Args:
        data: the head's bytes.
        toc_digest: their digest.
        layer: link to the layer's blob.
        diff_id: digest of its uncompressed tar, by the image's configuration.

    Raises:
        DigestMismatch: it is another head.
        FormatError: it is damaged, or speaks of another layer.
        LimitExceeded: its tables are too large.
        Unsupported: it is of another version, or proves its spans in a way that windows could cheat.
    """
    head = decode_head(data, toc_digest)
    header = head.header
    if head.decoded_size > _MAX_DECODED:
        raise LimitExceeded(f"index of layer {layer.digest} with tables of {head.decoded_size} bytes")
    if (header.layer_digest, header.layer_size) != (layer.digest, layer.size):
        raise FormatError(f"index of layer {header.layer_digest} under the name of {layer.digest}")
    if header.diff_id != diff_id:
        raise FormatError(f"index of layer {layer.digest} with another diffID than the configuration's")
    if any(span.proof is not Proof.MERKLE for span in head.spans()):
        raise Unsupported("an index whose spans are not proved by Merkle trees of their content")
    head.members()
    head.extents()
    return head


def windows_link(head: TocHead) -> Descriptor | None:
    """Link to the windows file that a head speaks of; None where no span has a window."""
    size = head.spans().windows_size
    return Descriptor(WINDOWS_TYPE, head.header.windows_digest, size) if size else None


def check_windows(index: LayerIndex, head: TocHead) -> None:
    """An artifact's windows are those that its head speaks of.

    Raises:
        FormatError: they are another's, or missing.
    """
    own = windows_link(head)
    there = index.windows
    if (there and (there.digest, there.size)) != (own and (own.digest, own.size)):
        raise FormatError(f"index of layer {head.header.layer_digest} beside other windows than its own")
