"""Media types of images, and what each says of a layer's compression.

Sources: image-spec `media-types.md`, `layer.md`; Docker's "Image Manifest Version 2, Schema 2".
"""

from collections.abc import Mapping
from typing import Final

from indexer.errors import Unsupported
from indexer.toc import Compression

OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
OCI_EMPTY: Final = "application/vnd.oci.empty.v1+json"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"

INDEX_TYPES: Final = frozenset({OCI_INDEX, DOCKER_LIST})
MANIFEST_TYPES: Final = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
DOCUMENT_TYPES: Final = INDEX_TYPES | MANIFEST_TYPES
SCHEMA1_TYPES: Final = frozenset(
    {
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
    }
)

# The last three are what old clients wrote for a configuration (docker/distribution issue 1621).
CONFIG_TYPES: Final = frozenset(
    {OCI_CONFIG, DOCKER_CONFIG, "application/octet-stream", "application/json", "text/html"}
)

_DOCKER_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar"
_OCI_NONDISTRIBUTABLE = "application/vnd.oci.image.layer.nondistributable.v1.tar"

LAYER_COMPRESSIONS: Final[Mapping[str, Compression]] = {
    OCI_LAYER: Compression.NONE,
    f"{OCI_LAYER}+gzip": Compression.GZIP,
    f"{OCI_LAYER}+zstd": Compression.ZSTD,
    _OCI_NONDISTRIBUTABLE: Compression.NONE,
    f"{_OCI_NONDISTRIBUTABLE}+gzip": Compression.GZIP,
    f"{_OCI_NONDISTRIBUTABLE}+zstd": Compression.ZSTD,
    DOCKER_LAYER: Compression.NONE,
    f"{DOCKER_LAYER}.gzip": Compression.GZIP,
    f"{DOCKER_LAYER}.zstd": Compression.ZSTD,
    _DOCKER_FOREIGN: Compression.NONE,
    f"{_DOCKER_FOREIGN}.gzip": Compression.GZIP,
}


def layer_compression(media_type: str) -> Compression:
    """How a layer of this type says it is compressed: a claim, as some builders label every layer gzip.

    Raises:
        Unsupported: no file system layer: encrypted, a chart, a module, or unknown.
    """
    compression = LAYER_COMPRESSIONS.get(media_type)
    if compression is not None:
        return compression
    raise Unsupported(f"layer of type {media_type[:100]!r}{_hint(media_type)} cannot be mounted")


def _hint(media_type: str) -> str:
    for mark, words in (
        ("+encrypted", " (encrypted: decrypt the image first)"),
        ("helm", " (a Helm chart)"),
        ("wasm", " (a WebAssembly module)"),
    ):
        if mark in media_type:
            return words
    return ""


def essence(content_type: str) -> str:
    """A Content-Type header without its parameters, in lower case."""
    return content_type.split(";", 1)[0].strip().lower()
