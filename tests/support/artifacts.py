"""Small artifacts that refer to a small image."""

from indexer.digest import sha256_digest
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.media_types import OCI_EMPTY, OCI_MANIFEST
from lazyfs.source.push.artifact import Artifact
from lazyfs.source.registry.referrers import fallback_tag
from tests.support.images import build_image, encode

KIND = "application/vnd.example.index.v1+json"
IMAGE = build_image([b"layer"], compression="none")
SUBJECT = Descriptor(IMAGE.media_type, IMAGE.digest, len(IMAGE.data))
TAG = fallback_tag(IMAGE.digest)


def artifact(content: bytes = b"content", subject: Descriptor = SUBJECT, kind: str = KIND) -> Artifact:
    blobs = [(Descriptor(OCI_EMPTY, sha256_digest(b"{}"), 2), b"{}")]
    blobs += [(Descriptor("application/x", sha256_digest(content), len(content)), content)]
    links = [{"mediaType": d.media_type, "digest": d.digest, "size": d.size} for d, _ in blobs]
    link = {"mediaType": subject.media_type, "digest": subject.digest, "size": subject.size}
    data = encode(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": kind,
            "config": links[0],
            "layers": links[1:],
            "subject": link,
        }
    )
    descriptor = Descriptor(OCI_MANIFEST, sha256_digest(data), len(data), artifact_type=kind)
    return Artifact(data, descriptor, subject.digest, tuple(blobs))
