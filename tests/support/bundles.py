"""Sigstore bundles as cosign 3 makes them, by libraries that others wrote, and put where it puts them."""

import json
from base64 import b64encode
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner, SSlibKey
from sigstore_models.bundle.v1 import Bundle

from indexer.digest import sha256_digest
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.media_types import OCI_EMPTY, OCI_MANIFEST
from lazyfs.source.push.artifact import Artifact, descriptor_fields
from tests.support.images import descriptor_of, encode
from tests.support.published import PrivateKey, attach, raw_signature
from tests.support.registry import Registry

BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
SIGN = "https://sigstore.dev/cosign/sign/v1"
STATEMENT = "application/vnd.in-toto+json"


def statement(digest: str, predicate: str = SIGN, **changes: Any) -> bytes:
    """What `cosign sign` signs."""
    algorithm, _, encoded = digest.partition(":")
    said = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"digest": {algorithm: encoded}, "annotations": {}}],
        "predicateType": predicate,
        "predicate": {},
    }
    return encode(said | changes)


def envelope(key: PrivateKey, payload: bytes, payload_type: str = STATEMENT) -> dict[str, Any]:
    """A payload, signed: its DSSE envelope."""
    scheme = "rsa-pkcs1v15-sha256" if isinstance(key, rsa.RSAPrivateKey) else None
    signed = Envelope(payload, payload_type, {})
    signed.sign(CryptoSigner(key, SSlibKey.from_crypto(key.public_key(), scheme=scheme)))
    content: dict[str, Any] = signed.to_dict()
    for one in content["signatures"]:
        del one["keyid"]  # cosign names none there
    return content


def bundle(content: dict[str, Any], media_type: str = BUNDLE_TYPE, *, certified: bool = False) -> bytes:
    """A bundle of an envelope or a message signature, by a key or, allegedly, by a certificate."""
    which = "dsseEnvelope" if "payload" in content else "messageSignature"
    by_key = {"publicKey": {"hint": b64encode(bytes(32)).decode()}}
    by_certificate = {"certificate": {"rawBytes": b64encode(b"DER").decode()}}
    material = (by_certificate if certified else by_key) | {"tlogEntries": []}
    fields = {"mediaType": media_type, "verificationMaterial": material, which: content}
    return Bundle.from_json(json.dumps(fields)).to_json().encode()


def message_signature(key: PrivateKey, data: bytes, digest: str = "") -> dict[str, Any]:
    """A signature of bytes that are elsewhere."""
    stated = bytes.fromhex((digest or sha256_digest(data))[7:])
    return {
        "messageDigest": {"algorithm": "SHA2_256", "digest": b64encode(stated).decode()},
        "signature": b64encode(raw_signature(key, data)).decode(),
    }


def signed_bundle(key: PrivateKey, digest: str, predicate: str = SIGN, **options: Any) -> bytes:
    """The bundle by which a key signs a manifest, or says something else of it."""
    return bundle(envelope(key, statement(digest, predicate)), **options)


def manifest_of(data: bytes, kind: str = BUNDLE_TYPE, predicate: str | None = SIGN) -> dict[str, Any]:
    """The manifest by which a bundle refers to something, without what it refers to."""
    manifest: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": kind,
        "config": descriptor_of(b"{}", OCI_EMPTY),
        "layers": [descriptor_of(data, kind)],
    }
    if predicate is not None:
        manifest["annotations"] = {
            "org.opencontainers.image.created": "2026-01-01T00:00:00Z",
            "dev.sigstore.bundle.content": "dsse-envelope",
            "dev.sigstore.bundle.predicateType": predicate,
        }
    return manifest


def attach_bundle(
    registry: Registry,
    digest: str,
    data: bytes,
    *,
    kind: str = BUNDLE_TYPE,
    predicate: str | None = SIGN,
    **listed: Any,
) -> dict[str, Any]:
    """Put a bundle beside a manifest of `app`, as cosign does; the link to it. No request is made."""
    registry.put_blob("app", b"{}")
    registry.put_blob("app", data)
    return attach(registry, "app", digest, manifest_of(data, kind, predicate), **listed)


def bundle_artifact(subject: Descriptor, data: bytes, listed_as: str = BUNDLE_TYPE) -> Artifact:
    """A bundle to be pushed beside an image; `listed_as` is the type that a fallback tag is to give it."""
    document = encode(manifest_of(data) | {"subject": descriptor_fields(subject)})
    link = Descriptor(OCI_MANIFEST, sha256_digest(document), len(document), artifact_type=listed_as)
    blobs = [(Descriptor(OCI_EMPTY, sha256_digest(b"{}"), 2), b"{}")]
    blobs += [(Descriptor(BUNDLE_TYPE, sha256_digest(data), len(data)), data)]
    return Artifact(document, link, subject.digest, tuple(blobs))
