"""Bundles that are none, that are malformed, or that say something else. None of them signs `IMAGE`."""

import base64
import json
from typing import Any

from indexer.digest import sha256_digest
from lazyfs.image.trust.sigstore_bundle import MAX_BUNDLE
from tests.support.bundles import SIGN, bundle, envelope, message_signature, signed_bundle, statement
from tests.support.images import build_image
from tests.support.published import new_key, raw_signature

KEY, OTHER = new_key(), new_key()
IMAGE = build_image([b"layer"], compression="none")
DIGEST = sha256_digest(b"another")
ATTESTATIONS = (
    "https://slsa.dev/provenance/v1",
    "https://spdx.dev/Document",
    "https://cyclonedx.org/bom",
    "https://cosign.sigstore.dev/attestation/v1",
    SIGN + "/",
    SIGN.upper(),
    "",
)

WHOLE = json.loads(signed_bundle(KEY, IMAGE.digest))
MESSAGE = json.loads(bundle(message_signature(KEY, IMAGE.data)))


def changed(document: dict[str, Any], path: str, value: Any) -> bytes:
    """A bundle with one field, "a.b.0.c", set to something else, or without it for `...`."""
    document = json.loads(json.dumps(document))
    *parents, last = [int(name) if name.isdigit() else name for name in path.split(".")]
    place: Any = document
    for name in parents:
        place = place[name]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return json.dumps(document).encode()


MALFORMED = {
    "no JSON": b"{",
    "no object": b"[]",
    "nested without end": b"[" * 100_000,
    "too large": changed(WHOLE, "filler", "x" * MAX_BUNDLE),
    "a key twice": signed_bundle(KEY, IMAGE.digest).replace(b"{", b'{"mediaType":"x",', 1),
    "of no type": changed(WHOLE, "mediaType", ...),
    "of a later version": changed(WHOLE, "mediaType", "application/vnd.dev.sigstore.bundle.v0.4+json"),
    "with nothing in it": changed(WHOLE, "dsseEnvelope", ...),
    "with both in it": json.dumps(WHOLE | MESSAGE).encode(),
    "with a list for material": changed(WHOLE, "verificationMaterial", []),
    "of a list": changed(WHOLE, "dsseEnvelope", [WHOLE["dsseEnvelope"]]),
    "signed by nobody": changed(WHOLE, "dsseEnvelope.signatures", []),
    "signed twice": changed(WHOLE, "dsseEnvelope.signatures", WHOLE["dsseEnvelope"]["signatures"] * 2),
    "without a signature": changed(WHOLE, "dsseEnvelope.signatures.0.sig", ...),
    "with an empty signature": changed(WHOLE, "dsseEnvelope.signatures.0.sig", ""),
    "with a signature of a wrong length": changed(WHOLE, "dsseEnvelope.signatures.0.sig", "A"),
    "with a signature in hexadecimal, kind of": changed(WHOLE, "dsseEnvelope.signatures.0.sig", "0x:!"),
    "with a number for a signature": changed(WHOLE, "dsseEnvelope.signatures.0.sig", 5),
    "without a payload": changed(WHOLE, "dsseEnvelope.payload", ...),
    "without a payload's type": changed(WHOLE, "dsseEnvelope.payloadType", ...),
    "with half a character": changed(WHOLE, "dsseEnvelope.payloadType", "\ud800"),
    "of a digest by another name": changed(MESSAGE, "messageSignature.messageDigest.algorithm", "SHA2_512"),
    "of no digest": changed(MESSAGE, "messageSignature.messageDigest", ...),
    "without a message's signature": changed(MESSAGE, "messageSignature.signature", ...),
}  # fmt: skip

MEANS_ELSE = {
    "an envelope of another type": envelope(KEY, statement(IMAGE.digest), "application/json"),
    "no JSON": envelope(KEY, b"\xff"),
    "a list": envelope(KEY, b"[]"),
    "a statement of another version": envelope(KEY, statement(IMAGE.digest, _type="https://in-toto.io/S/v2")),
    "a statement of no version": envelope(KEY, statement(IMAGE.digest, _type=None)),
    "a statement without a predicate's type": envelope(KEY, statement(IMAGE.digest, predicateType=None)),
    "a subject that is none": envelope(KEY, statement(IMAGE.digest, subject=["x"])),
    "subjects that are one": envelope(KEY, statement(IMAGE.digest, subject={"digest": {}})),
    "subjects without end": envelope(KEY, statement(IMAGE.digest, subject=[{}] * 65)),
    "a digest that is a number": envelope(KEY, statement(IMAGE.digest, subject=[{"digest": {"sha256": 1}}])),
    **{f"predicate {name!r}": envelope(KEY, statement(IMAGE.digest, name)) for name in ATTESTATIONS},
}

NOT_SIGNED = {
    "by another key": signed_bundle(OTHER, IMAGE.digest),
    "of another manifest": signed_bundle(KEY, DIGEST),
    "of another digest's name": bundle(
        envelope(KEY, statement(IMAGE.digest, subject=[{"digest": {"sha512": IMAGE.digest[7:]}}]))
    ),
    "of no subject": bundle(envelope(KEY, statement(IMAGE.digest, subject=[]))),
    "of another payload": changed(
        WHOLE, "dsseEnvelope.payload", base64.b64encode(statement(DIGEST)).decode()
    ),
    "of another type": changed(WHOLE, "dsseEnvelope.payloadType", "application/json"),
    "of the payload alone": changed(
        WHOLE,
        "dsseEnvelope.signatures.0.sig",
        base64.b64encode(raw_signature(KEY, statement(IMAGE.digest))).decode(),
    ),
    "of another message": bundle(message_signature(KEY, b"another")),
    "of another message, as said": bundle(message_signature(KEY, b"another", IMAGE.digest)),
    "of this message, called another": bundle(message_signature(KEY, IMAGE.data, DIGEST)),
    **{name: bundle(content) for name, content in MEANS_ELSE.items()},
    **MALFORMED,
}
