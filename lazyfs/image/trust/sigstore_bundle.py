"""Signatures of manifests as cosign 3 makes them: Sigstore bundles. Pure.

A bundle is one JSON document, the only layer of an artifact that refers to what is signed. It holds either an
envelope (DSSE), which signs its payload together with the payload's type, and whose payload is an in-toto
statement about digests; or a message signature, which is over the manifest's own bytes.

Sources: sigstore/protobuf-specs, `sigstore_bundle.proto` (protobuf's JSON); sigstore/cosign,
`specs/BUNDLE_SPEC.md`, and what its `sign` writes; secure-systems-lab/dsse, `protocol.md`;
in-toto/attestation, `spec/v1/statement.md`.
"""

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from indexer.errors import FormatError
from lazyfs.oci.json_fields import Fields, parse_object

BUNDLE_TYPES: Final = (
    "application/vnd.dev.sigstore.bundle.v0.3+json",
    "application/vnd.dev.sigstore.bundle+json;version=0.3",
    "application/vnd.dev.sigstore.bundle+json;version=0.2",
    "application/vnd.dev.sigstore.bundle+json;version=0.1",
)
PREDICATE_KEY: Final = "dev.sigstore.bundle.predicateType"
SIGN_PREDICATE: Final = "https://sigstore.dev/cosign/sign/v1"
STATEMENT_PAYLOAD: Final = "application/vnd.in-toto+json"
MAX_BUNDLE: Final = 256 << 10  # one by a key, with a proof that a log has it, is of some 5 KiB

_STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
_MAX_SUBJECTS: Final = 64
_BASE64: Final = re.compile(r"[A-Za-z0-9+/_-]+={0,2}", re.ASCII)
_TO_STANDARD: Final = str.maketrans("-_", "+/")


class Envelope(Struct, frozen=True):
    """A DSSE envelope with its one signature, not checked.

    Attributes:
        payload_type: what the payload is.
        payload: its bytes.
        signature: its bytes.
        certified: whether a certificate says whose signature it is.
    """

    payload_type: str
    payload: bytes
    signature: bytes
    certified: bool

    @property
    def message(self) -> bytes:
        """What was signed: type and payload, each with its length, so that neither passes for the other."""
        kind = self.payload_type.encode()
        return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(self.payload), self.payload)

    def names(self, digest: str) -> bool:
        """Whether the payload says that the manifest of this digest is signed.

        Raises:
            FormatError: it says something else, as attestations do.
            LimitExceeded: of too many things.
        """
        if self.payload_type != STATEMENT_PAYLOAD:
            raise FormatError(f"envelope of type {self.payload_type[:100]!r}, not of an in-toto statement")
        statement = parse_object(self.payload, "in-toto statement", MAX_BUNDLE)
        if statement.text("predicateType") != SIGN_PREDICATE:
            raise FormatError(f"an attestation ({statement.text('predicateType')[:100]!r}), no signature")
        if statement.text("_type") != _STATEMENT_TYPE:
            raise FormatError(f"in-toto statement of type {statement.text('_type')[:100]!r}")
        algorithm, _, encoded = digest.partition(":")
        subjects = statement.children("subject", _MAX_SUBJECTS)
        return any(subject.child("digest").text(algorithm, "") == encoded for subject in subjects)


class MessageSignature(Struct, frozen=True):
    """A signature of the manifest's own bytes, not checked.

    Attributes:
        digest: of the manifest, as the bundle has it.
        signature: its bytes.
        certified: whether a certificate says whose signature it is.
    """

    digest: str
    signature: bytes
    certified: bool

    @property
    def message(self) -> None:
        """What was signed is not in the bundle."""
        return

    def names(self, digest: str) -> bool:
        """Whether the bundle is of the manifest of this digest."""
        return self.digest == digest


def may_sign(annotations: Mapping[str, str]) -> bool:
    """Whether what is said of a bundle leaves open that it is a signature; attestations mostly tell."""
    return annotations.get(PREDICATE_KEY, SIGN_PREDICATE) == SIGN_PREDICATE


def parse_bundle(data: bytes) -> Envelope | MessageSignature:
    """What a bundle holds. Logs, timestamps and hints about keys, which prove nothing here, are not read.

    Raises:
        FormatError: it makes no sense, or is of a version that is not known.
        LimitExceeded: it is too large, or has more than one signature.
    """
    bundle = parse_object(data, "Sigstore bundle", MAX_BUNDLE)
    if bundle.text("mediaType") not in BUNDLE_TYPES:
        raise FormatError(f"Sigstore bundle of type {bundle.text('mediaType')[:100]!r}")
    material = bundle.child("verificationMaterial")
    certified = "certificate" in material or "x509CertificateChain" in material
    if ("dsseEnvelope" in bundle) == ("messageSignature" in bundle):
        raise FormatError("Sigstore bundle: wants either an envelope or a message signature")
    if "dsseEnvelope" in bundle:
        return _envelope(bundle.child("dsseEnvelope"), certified=certified)
    return _message_signature(bundle.child("messageSignature"), certified=certified)


def _envelope(envelope: Fields, *, certified: bool) -> Envelope:
    # sigstore_bundle.proto: DSSE allows several signatures, bundles exactly one.
    signatures = list(envelope.children("signatures", 1))
    if not signatures:
        raise FormatError("Sigstore bundle: an envelope that nobody signed")
    return Envelope(
        payload_type=envelope.text("payloadType"),
        payload=_decoded(envelope, "payload"),
        signature=_decoded(signatures[0], "sig"),
        certified=certified,
    )


def _message_signature(content: Fields, *, certified: bool) -> MessageSignature:
    stated = content.child("messageDigest")
    if stated.text("algorithm") != "SHA2_256":
        raise FormatError(f"{stated.where}: of algorithm {stated.text('algorithm')[:100]!r}")
    digest = f"sha256:{_decoded(stated, 'digest').hex()}"
    return MessageSignature(digest, _decoded(content, "signature"), certified)


def _decoded(fields: Fields, name: str) -> bytes:
    """Bytes in base64 of either alphabet, with or without padding, as protobuf's JSON and DSSE allow them."""
    text = fields.text(name)
    if not _BASE64.fullmatch(text):
        raise FormatError(f"{fields.where}: {name!r} is not base64")
    bare = text.rstrip("=").translate(_TO_STANDARD)
    try:
        return base64.b64decode(bare + "=" * (-len(bare) % 4))
    except (binascii.Error, ValueError):
        raise FormatError(f"{fields.where}: {name!r} is not base64") from None
