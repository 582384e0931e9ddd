"""Indexes beside images, honest or not, and signatures, put into a registry without a request."""

import base64
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from msgspec.structs import replace

from indexer.build import BuiltToc
from indexer.digest import DIGEST_SIZE, sha256_digest
from indexer.toc import Member, Span, SpanTable, Toc
from indexer.toc_codec import VERSION, encode_toc
from lazyfs.image.indexes.artifact import LayerFiles, build_artifact
from lazyfs.image.trust.simple_signing import PAYLOAD_TYPE, SIGNATURE_KEY, SIGNATURE_TYPE
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.media_types import OCI_INDEX, OCI_MANIFEST
from lazyfs.source.push.artifact import Artifact, descriptor_fields
from lazyfs.source.registry.referrers import fallback_tag
from tests.support.images import BuiltDocument, descriptor_of, encode
from tests.support.layers import build
from tests.support.registry import Registry
from tests.support.spans import digests_of

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
Change = Callable[[BuiltToc], BuiltToc]


def index_of(
    image: BuiltDocument,
    change: Change | None = None,
    *,
    layer: int = -1,
    span_size: int = 64 << 10,
    encode: Callable[[Toc], bytes] = encode_toc,
) -> Artifact:
    """The index of an image; `change` is done to the table of one of its layers."""
    files = []
    wanted = image.layers[layer]
    for blob in dict.fromkeys(image.layers):
        built = build(blob, span_size=span_size)
        if change is not None and blob == wanted:
            built = change(built)
        files.append(LayerFiles(sha256_digest(blob), encode(built.toc), built.windows))
    subject = Descriptor(image.media_type, image.digest, len(image.data))
    return build_artifact(subject, files)


def encode_older(toc: Toc) -> bytes:
    """A head that says of itself to be of the version before."""
    data = encode_toc(toc)[:-DIGEST_SIZE]
    data = data[:7] + bytes([VERSION - 1]) + data[8:]
    return data + sha256(data).digest()


@contextmanager
def registry_with(image: BuiltDocument) -> Iterator[Registry]:
    """A registry that has an image as app:1, with its index."""
    with Registry() as running:
        running.push("app", image, tag="1")
        put(running, "app", index_of(image))
        yield running


def put(registry: Registry, repository: str, artifact: Artifact) -> str:
    """Store an artifact and list it, by the API or the fallback tag; its digest. No request is made."""
    for _, data in artifact.blobs:
        registry.put_blob(repository, bytes(data))
    digest = registry.put_manifest(repository, artifact.descriptor.digest, OCI_MANIFEST, artifact.data)
    _list(registry, repository, artifact.subject, descriptor_fields(artifact.descriptor))
    return digest


def _list(registry: Registry, repository: str, subject: str, link: dict[str, Any]) -> None:
    tag = fallback_tag(subject)
    with registry.store.lock:
        there = registry.store.tags.get((repository, tag))
        links = json.loads(registry.store.manifests[repository, there].data)["manifests"] if there else []
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [*links, link]}
    registry.put_manifest(repository, tag, OCI_INDEX, encode(index))


# Lies


def with_spans(change: Callable[[list[Span]], Sequence[Span]]) -> Change:
    """A table with other spans."""

    def lie(built: BuiltToc) -> BuiltToc:
        spans = SpanTable.from_spans(change(list(built.toc.spans)))
        return replace(built, toc=replace(built.toc, spans=spans))

    return lie


def with_members(change: Callable[[list[Member]], Sequence[Member]]) -> Change:
    """A table with other members."""
    return lambda built: replace(built, toc=replace(built.toc, members=change(list(built.toc.members))))


def swap_roots(spans: list[Span]) -> list[Span]:
    spans[1], spans[2] = spans[1]._replace(root=spans[2].root), spans[2]._replace(root=spans[1].root)
    return spans


def hide(path: bytes) -> Change:
    """A table that does not tell of a file."""
    return with_members(lambda members: [member for member in members if member.path != path])


def change_member(member: bytes, **fields: Any) -> Change:
    """A table that says something else of a file."""
    return with_members(lambda ms: [m._replace(**fields) if m.path == member else m for m in ms])


def table_of(other: bytes, **claims: Any) -> Change:
    """The table of another blob under the name of this one, with these claims in its header."""

    def lie(built: BuiltToc) -> BuiltToc:
        theirs, header = build(other), built.toc.header
        names = {"layer_digest": header.layer_digest, "layer_size": header.layer_size} | claims
        return replace(theirs, toc=replace(theirs.toc, header=replace(theirs.toc.header, **names)))

    return lie


def with_content(data: bytes) -> Change:
    """Spans whose digests are those of other content of the same size: it cannot be fetched, only planted."""
    return with_spans(lambda spans: [_of_content(span, data) for span in spans])


def with_root_of(data: bytes) -> Change:
    """Spans of which the first has the root of other content, and all the true BLAKE3 digest."""
    return with_spans(lambda spans: [spans[0]._replace(root=_of_content(spans[0], data).root), *spans[1:]])


def with_blake3_of(data: bytes) -> Change:
    """Spans of which the first has the BLAKE3 digest of other content, and all the true root."""
    return with_spans(
        lambda spans: [spans[0]._replace(blake3=_of_content(spans[0], data).blake3), *spans[1:]]
    )


def _of_content(span: Span, data: bytes) -> Span:
    piece = data[span.uncompressed_start : span.uncompressed_end]
    return span._replace(**digests_of(piece))


# Signatures


def new_key(kind: str = "ecdsa") -> PrivateKey:
    match kind:
        case "ecdsa":
            return ec.generate_private_key(ec.SECP256R1())
        case "rsa":
            return rsa.generate_private_key(public_exponent=65537, key_size=2048)
        case "ed25519":
            return ed25519.Ed25519PrivateKey.generate()
        case other:
            raise ValueError(other)


def public_pem(key: PrivateKey) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, form)


def raw_signature(key: PrivateKey, data: bytes) -> bytes:
    match key:
        case ec.EllipticCurvePrivateKey():
            return key.sign(data, ec.ECDSA(hashes.SHA256()))
        case rsa.RSAPrivateKey():
            return key.sign(data, padding.PKCS1v15(), hashes.SHA256())
        case _:
            return key.sign(data)


def payload(digest: str, **critical: Any) -> bytes:
    """What cosign signs."""
    said = {
        "identity": {"docker-reference": ""},
        "image": {"docker-manifest-digest": digest},
        "type": "cosign container image signature",
    }
    return encode({"critical": said | critical, "optional": None})


def sign(
    registry: Registry,
    repository: str,
    digest: str,
    key: PrivateKey,
    *,
    referrer: bool = False,
    data: bytes | None = None,
    signature: str | None = None,
) -> None:
    """Put a signature of a manifest beside it, under cosign's tag or as a referrer. No request is made."""
    data = payload(digest) if data is None else data
    config = encode(
        {"architecture": "", "os": "", "config": {}, "rootfs": {"type": "layers", "diff_ids": []}}
    )
    made = base64.b64encode(raw_signature(key, data)).decode() if signature is None else signature
    registry.put_blob(repository, config)
    registry.put_blob(repository, data)
    manifest: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor_of(
            config, SIGNATURE_TYPE if referrer else "application/vnd.oci.image.config.v1+json"
        ),
        "layers": [descriptor_of(data, PAYLOAD_TYPE) | {"annotations": {SIGNATURE_KEY: made}}],
    }
    if not referrer:
        registry.put_manifest(repository, fallback_tag(digest) + ".sig", OCI_MANIFEST, encode(manifest))
        return
    attach(registry, repository, digest, manifest | {"artifactType": SIGNATURE_TYPE})


def attach(
    registry: Registry, repository: str, subject: str, manifest: dict[str, Any], **listed: Any
) -> dict[str, Any]:
    """Store a manifest that refers to another, and list it under the fallback tag; the link to it.

    Args:
        registry: where to.
        repository: where there.
        subject: digest of what it refers to.
        manifest: without its subject.
        listed: what the link says otherwise than the manifest.
    """
    with registry.store.lock:
        meant = registry.store.manifest(repository, subject)[1]
    document = encode(manifest | {"subject": descriptor_of(meant.data, meant.media_type)})
    registry.put_manifest(repository, sha256_digest(document), OCI_MANIFEST, document)
    told = {key: manifest[key] for key in ("artifactType", "annotations") if key in manifest}
    link = descriptor_of(document, OCI_MANIFEST) | told | listed
    _list(registry, repository, subject, link)
    return link
