"""Signatures of manifests as cosign made them before its version 3: simple signing. Pure.

Source: sigstore/cosign, `specs/SIGNATURE_SPEC.md`. A signature is over the exact bytes of a payload, a blob;
it stands in an annotation of the link to it. The payload names the digest of the manifest that is meant.
"""

import base64
import binascii
from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from indexer.errors import FormatError
from lazyfs.oci.json_fields import parse_object

SIGNATURE_TYPE: Final = "application/vnd.dev.cosign.artifact.sig.v1+json"
PAYLOAD_TYPE: Final = "application/vnd.dev.cosign.simplesigning.v1+json"
SIGNATURE_KEY: Final = "dev.cosignproject.cosign/signature"
CERTIFICATE_KEY: Final = "dev.sigstore.cosign/certificate"
MAX_PAYLOAD: Final = 64 << 10

_MEANS: Final = "cosign container image signature"
_MAX_SIGNATURE: Final = 8 << 10


class SimpleSignature(Struct, frozen=True):
    """A payload and its signature, not checked.

    Attributes:
        signature: its bytes.
        message: the payload: what was signed.
        certified: whether a certificate says whose signature it is.
    """

    signature: bytes
    message: bytes
    certified: bool

    def names(self, digest: str) -> bool:
        """Whether the payload says that the manifest of this digest is signed.

        Raises:
            FormatError: it is no payload of a signature of a manifest.
        """
        critical = parse_object(self.message, "payload of a signature").child("critical")
        if critical.text("type") != _MEANS:
            raise FormatError(f"payload of a signature that means {critical.text('type')[:100]!r}")
        return critical.child("image").text("docker-manifest-digest") == digest


def parse_signature(annotations: Mapping[str, str], payload: bytes) -> SimpleSignature:
    """The signature of a payload.

    Args:
        annotations: of the link to the payload.
        payload: its exact bytes.

    Raises:
        FormatError: there is none.
    """
    text = annotations.get(SIGNATURE_KEY, "")
    if not text or len(text) > _MAX_SIGNATURE:
        raise FormatError("a signature of impossible length")
    try:
        signature = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise FormatError("a signature that is not base64") from None
    return SimpleSignature(signature, payload, certified=bool(annotations.get(CERTIFICATE_KEY)))
