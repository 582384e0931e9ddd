"""Public keys whose signatures count."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

from lazyfs.errors import ConfigError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

_MIN_RSA_BITS: Final = 2048
_CURVES: Final = ("secp256r1", "secp384r1", "secp521r1")


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key whose signatures count.

    Attributes:
        name: for people: the file it came from.
        fingerprint: sha256 of its DER form, hexadecimal.
    """

    name: str
    fingerprint: str
    _key: "PublicKeyTypes" = field(repr=False, compare=False)

    def verifies(self, signature: bytes, data: bytes) -> bool:
        """Whether this key signed `data`: by ECDSA, RSA (PKCS #1 v1.5, SHA-256) or Ed25519.

        ECDSA is with SHA-256, or with the hash that is as long as its curve: signers of Sigstore took the
        first for all curves, and take the second today (protobuf-specs, `PublicKeyDetails`).
        """
        from cryptography.hazmat.primitives import hashes  # noqa: PLC0415  # most runs have no keys
        from cryptography.hazmat.primitives.asymmetric import (  # noqa: PLC0415  # most runs have no keys
            ec,
            ed25519,
            padding,
            rsa,
        )

        match self._key:
            case ec.EllipticCurvePublicKey() as key:
                kinds: list[hashes.HashAlgorithm] = [hashes.SHA256()]
                if key.curve.key_size > kinds[0].digest_size * 8:
                    kinds.append(hashes.SHA384() if key.curve.key_size == 384 else hashes.SHA512())
                return any(_holds(partial(key.verify, signature, data, ec.ECDSA(kind))) for kind in kinds)
            case rsa.RSAPublicKey() as key:
                return _holds(partial(key.verify, signature, data, padding.PKCS1v15(), hashes.SHA256()))
            case ed25519.Ed25519PublicKey() as key:
                return _holds(partial(key.verify, signature, data))
            case _:
                return False


def _holds(verify: Callable[[], None]) -> bool:
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415  # most runs have no keys

    try:
        verify()
    except InvalidSignature:
        return False
    return True


def parse_key(pem: bytes, name: str) -> PublicKey:
    """A public key in PEM, as `cosign generate-key-pair` writes `cosign.pub`.

    Raises:
        ConfigError: it is none, or of a kind that is not used for signatures here.
    """
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415  # most runs have no keys
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415  # most runs have no keys
    from cryptography.hazmat.primitives.asymmetric import (  # noqa: PLC0415  # most runs have no keys
        ec,
        ed25519,
        rsa,
    )

    if b"PRIVATE KEY" in pem:
        raise ConfigError(f"{name}: a private key; the public one is wanted, and this one ought to be hidden")
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(f"{name}: not a public key in PEM") from None
    if not isinstance(key, ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey):
        raise ConfigError(f"{name}: not an ECDSA, RSA or Ed25519 key")
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name not in _CURVES:
        raise ConfigError(f"{name}: a key on the curve {key.curve.name}; known are {', '.join(_CURVES)}")
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < _MIN_RSA_BITS:
        raise ConfigError(f"{name}: an RSA key of {key.key_size} bits; at least {_MIN_RSA_BITS} are wanted")
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return PublicKey(name, hashlib.sha256(der).hexdigest(), key)
