"""SOCI indexes: which zTOC speaks of which layer.

A SOCI index is a manifest whose `layers` are zTOCs, each annotated with the digest of its image layer.
Version 1 refers to the image's manifest, and anyone who may push can add one; version 2 is named by an
annotation of the manifest itself (soci-snapshotter, docs/soci-index-manifest-v2.md).
"""

from collections.abc import Mapping
from typing import Final

import trio

from indexer.build import BuiltToc
from indexer.errors import FormatError, LimitExceeded, Unsupported
from indexer.foreign.facts import BlobFacts
from indexer.foreign.gzip_zinfo import PLAIN_HEADER
from indexer.foreign.soci import MAX_ZTOC, read_ztoc
from indexer.spans.scan import Limits
from lazyfs.oci.descriptor import Descriptor, readable_digest
from lazyfs.oci.manifest import Manifest, parse_manifest
from lazyfs.oci.media_types import OCI_MANIFEST
from lazyfs.source.base import Blob, Source

V1_TYPE: Final = "application/vnd.amazon.soci.index.v1+json"
V2_TYPE: Final = "application/vnd.amazon.soci.index.v2+json"
V2_KEY: Final = "com.amazon.soci.index-digest"
LAYER_KEY: Final = "com.amazon.soci.image-layer-digest"

_ZTOC_TYPE: Final = "application/octet-stream"
_SMALL_ZTOC: Final = 1 << 20  # bytes of a zTOC that any layer may have
_PLAIN: Final = b"\x1f\x8b\x08\x00"  # a gzip header without optional fields (RFC 1952 section 2.3.1)


def named_index(manifest: Manifest) -> str | None:
    """The digest of the SOCI index, version 2, that an image's manifest names.

    Raises:
        IndexerError: what it names is no digest that can be checked.
    """
    digest = manifest.annotations.get(V2_KEY)
    return readable_digest(digest) if digest is not None else None


def parse_index(data: bytes, subject: str | None) -> Mapping[str, Descriptor]:
    """Links to zTOCs by layer digest. Other artifacts of an index are passed by.

    Args:
        data: the index.
        subject: digest of the manifest that an index of version 1 must refer to; None for version 2.

    Raises:
        FormatError: it is none, or that of another image, or has two zTOCs for a layer.
        Unsupported: its digests cannot be checked.
    """
    manifest = parse_manifest(data, OCI_MANIFEST)
    if manifest.config.media_type != (V2_TYPE if subject is None else V1_TYPE):
        raise FormatError(f"an artifact of type {manifest.config.media_type[:100]!r} for a SOCI index")
    if subject is not None and (manifest.subject is None or manifest.subject.digest != subject):
        raise FormatError("a SOCI index of another image")
    found: dict[str, Descriptor] = {}
    for link in manifest.layers:
        layer = link.annotations.get(LAYER_KEY)
        if link.media_type != _ZTOC_TYPE or layer is None:
            continue
        readable_digest(link.digest)
        if found.setdefault(readable_digest(layer), link) is not link:
            raise FormatError(f"a SOCI index with two zTOCs for layer {layer}")
    return found


async def fetch_ztoc(
    layer: Descriptor, blob: Blob, source: Source, link: Descriptor, limits: Limits
) -> BuiltToc:
    """The Toc, with windows, of a layer by a zTOC: one request for it, and for old ones one for the layer.

    Raises:
        DigestMismatch: it is another than its link promises.
        IndexerError: it cannot be used.
        LazyfsError: it cannot be had.
    """
    if link.size > max(_SMALL_ZTOC, layer.size):
        raise LimitExceeded(f"a zTOC of {link.size} bytes for a layer of {layer.size}")
    data = await source.document(link, MAX_ZTOC)
    ztoc = await trio.to_thread.run_sync(read_ztoc, data, BlobFacts(layer.digest, layer.size), limits)
    if ztoc.assumes_plain_header:
        head = await blob.fetch(0, min(PLAIN_HEADER, layer.size), bytes)
        if not head.startswith(_PLAIN):
            raise Unsupported("an old zTOC of a layer whose gzip header has optional fields")
    return ztoc.built
