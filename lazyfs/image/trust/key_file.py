"""Files of public keys, and what verifies signatures by them: the only module that needs cryptography."""

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from lazyfs.errors import ConfigError
from lazyfs.image.trust.keys import PublicKey

_MIN_RSA_BITS: Final = 2048
_CURVES: Final = ("secp256r1", "secp384r1", "secp521r1")

_Key = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey


def parse_key(pem: bytes, name: str) -> PublicKey:
    """A public key in PEM, as `cosign generate-key-pair` writes `cosign.pub`.

    It verifies signatures by ECDSA, RSA (PKCS #1 v1.5, SHA-256) or Ed25519.

    Raises:
        ConfigError: it is none, or of a kind that is not used for signatures here.
    """
    if b"PRIVATE KEY" in pem:
        raise ConfigError(f"{name}: a private key; the public one is wanted, and this one ought to be hidden")
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(f"{name}: not a public key in PEM") from None
    if not isinstance(key, _Key):
        raise ConfigError(f"{name}: not an ECDSA, RSA or Ed25519 key")
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name not in _CURVES:
        raise ConfigError(f"{name}: a key on the curve {key.curve.name}; known are {', '.join(_CURVES)}")
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < _MIN_RSA_BITS:
        raise ConfigError(f"{name}: an RSA key of {key.key_size} bits; at least {_MIN_RSA_BITS} are wanted")
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return PublicKey(name, hashlib.sha256(der).hexdigest(), partial(_verifies, key))


def _verifies(key: _Key, signature: bytes, data: bytes) -> bool:
    match key:
        case ec.EllipticCurvePublicKey():
            ways = [ec.ECDSA(kind) for kind in _hashes(key.curve)]
            return any(_holds(partial(key.verify, signature, data, way)) for way in ways)
        case rsa.RSAPublicKey():
            return _holds(partial(key.verify, signature, data, padding.PKCS1v15(), hashes.SHA256()))
        case ed25519.Ed25519PublicKey():
            return _holds(partial(key.verify, signature, data))


def _hashes(curve: ec.EllipticCurve) -> list[hashes.HashAlgorithm]:
    """SHA-256, and the hash that is as long as the curve.

    Signers of Sigstore took the first for all curves, and take the second today (protobuf-specs,
    `PublicKeyDetails`).
    """
    kinds: list[hashes.HashAlgorithm] = [hashes.SHA256()]
    if curve.key_size > kinds[0].digest_size * 8:
        kinds.append(hashes.SHA384() if curve.key_size == 384 else hashes.SHA512())
    return kinds


def _holds(verify: Callable[[], None]) -> bool:
    try:
        verify()
    except InvalidSignature:
        return False
    return True
