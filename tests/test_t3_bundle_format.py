"""The format of Sigstore bundles: what one says, however it is written. Others' libraries made them."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from securesystemslib.dsse import Envelope as TheirEnvelope

from indexer.digest import sha256_digest
from indexer.errors import IndexerError
from lazyfs.image.trust.key_file import parse_key
from lazyfs.image.trust.sigstore_bundle import BUNDLE_TYPES, Envelope, MessageSignature, parse_bundle
from tests.support.bad_bundles import DIGEST, IMAGE, KEY, MALFORMED, MEANS_ELSE, MESSAGE, WHOLE, changed
from tests.support.bundles import SIGN, bundle, envelope, message_signature, signed_bundle, statement
from tests.support.published import new_key, public_pem

PUBLIC = parse_key(public_pem(KEY), "team.pub")


def test_what_an_envelope_signs_is_what_the_specification_says() -> None:
    made = Envelope("http://example.com/HelloWorld", b"hello world", b"", certified=False)
    assert made.message == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


@given(st.text(st.characters(codec="utf-8")), st.binary())
def test_what_an_envelope_signs_is_what_others_sign(kind: str, payload: bytes) -> None:
    assert Envelope(kind, payload, b"", certified=False).message == TheirEnvelope(payload, kind, {}).pae()


def of_curve(curve: ec.EllipticCurve) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(curve)


@pytest.mark.parametrize("media_type", BUNDLE_TYPES)
@pytest.mark.parametrize("kind", ["ecdsa", "rsa", "ed25519", "p384", "p521"])
def test_a_bundle_of_each_version_and_key_is_understood(kind: str, media_type: str) -> None:
    curves = {"p384": ec.SECP384R1(), "p521": ec.SECP521R1()}
    key = of_curve(curves[kind]) if kind in curves else new_key(kind)
    signed = parse_bundle(signed_bundle(key, IMAGE.digest, media_type=media_type))
    assert isinstance(signed, Envelope)
    assert not signed.certified
    assert parse_key(public_pem(key), "k").verifies(signed.signature, signed.message)
    assert not PUBLIC.verifies(signed.signature, signed.message)
    assert signed.names(IMAGE.digest)
    assert not signed.names(DIGEST)
    assert not signed.names("sha512:" + IMAGE.digest[7:])


def test_a_message_signature_is_over_what_is_not_in_the_bundle() -> None:
    signed = parse_bundle(bundle(message_signature(KEY, IMAGE.data)))
    assert isinstance(signed, MessageSignature)
    assert signed.message is None
    assert PUBLIC.verifies(signed.signature, IMAGE.data)
    assert signed.names(IMAGE.digest)
    assert not signed.names(DIGEST)


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
@pytest.mark.parametrize("padded", [True, False])
def test_bytes_may_be_in_either_alphabet_of_base64(encode: Any, padded: bool) -> None:
    payload = statement(IMAGE.digest, filler="?>~\N{DOUBLE EXCLAMATION MARK}" * 9)
    document = json.loads(bundle(envelope(KEY, payload)))
    text = encode(payload).decode()
    assert ("-" in text or "_" in text) == (encode is base64.urlsafe_b64encode)
    assert text.endswith("=")
    document["dsseEnvelope"]["payload"] = text if padded else text.rstrip("=")
    signed = parse_bundle(json.dumps(document).encode())
    assert isinstance(signed, Envelope)
    assert signed.payload == payload


def one_of_several(digest: str) -> bytes:
    others = [{"digest": {"sha256": DIGEST[7:]}}, {"digest": {"sha512": digest[7:]}}, {"name": "x"}]
    return statement(digest, subject=[*others, {"digest": {"sha256": digest[7:]}}])


def test_one_subject_of_several_is_enough() -> None:
    signed = parse_bundle(bundle(envelope(KEY, one_of_several(IMAGE.digest))))
    assert signed.names(IMAGE.digest)
    assert signed.names(DIGEST)
    assert not signed.names(sha256_digest(b"a third"))


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_bundle_is_told_in_one_line(name: str) -> None:
    with pytest.raises(IndexerError) as caught:
        parse_bundle(MALFORMED[name])
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", MEANS_ELSE)
def test_what_means_something_else_is_no_signature(name: str) -> None:
    with pytest.raises(IndexerError):
        parse_bundle(bundle(MEANS_ELSE[name])).names(IMAGE.digest)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text() | st.sampled_from(["QUJD", SIGN]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@settings(max_examples=100)
@given(st.data())
def test_whatever_stands_in_a_bundle_there_is_one_kind_of_error(data: st.DataObject) -> None:
    document = data.draw(st.sampled_from([WHOLE, MESSAGE]))
    paths = sorted(paths_in(document))
    broken = changed(document, data.draw(st.sampled_from(paths)), data.draw(ANYTHING))
    try:
        signed = parse_bundle(broken)
        signed.names(IMAGE.digest)
    except IndexerError:
        return
    assert isinstance(signed.signature, bytes)


def paths_in(value: Any, before: str = "") -> Iterator[str]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        yield f"{before}{name}"
        yield from paths_in(inner, f"{before}{name}.")
