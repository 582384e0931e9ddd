"""Signatures of images and indexes, as cosign makes and stores them.

Sources: sigstore/cosign, `specs/SIGNATURE_SPEC.md` (simple signing, ECDSA, the tag and its manifest), and
its `oci-1-1` mode, which attaches the same manifest as a referrer. A signature is over the exact bytes of a
payload; the payload names the digest of the manifest that is meant.
"""

import base64
import binascii
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, TypeVar

from indexer.errors import FormatError, IndexerError
from lazyfs.errors import NotFound, SourceError
from lazyfs.image.keys import PublicKey
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.json_fields import parse_object
from lazyfs.oci.manifest import parse_manifest
from lazyfs.source.attachments import Attachments
from lazyfs.source.referrers import fallback_tag

_log = logging.getLogger(__name__)

T = TypeVar("T")

SIGNATURE_TYPE: Final = "application/vnd.dev.cosign.artifact.sig.v1+json"
PAYLOAD_TYPE: Final = "application/vnd.dev.cosign.simplesigning.v1+json"
SIGNATURE_KEY: Final = "dev.cosignproject.cosign/signature"

_MEANS: Final = "cosign container image signature"
_MAX_PAYLOAD: Final = 64 << 10
_MAX_SIGNATURE: Final = 8 << 10
_MAX_SIGNATURES: Final = 32
_MAX_MANIFESTS: Final = 16


async def find_signer(place: Attachments, digest: str, keys: Sequence[PublicKey]) -> PublicKey | None:
    """The key that signed the manifest of this digest, by the signatures in `place`; None if none did.

    What is no signature, or that of somebody else, is passed by; and so is what cannot be had, as long as
    a good signature is found elsewhere.

    Raises:
        Unauthorized, Unreachable, SourceError: none was found, and the repository does not tell all.
    """
    return await _Search(place, digest, keys).signer() if keys else None


class _Search:
    """For one signature of a manifest that one of the keys made."""

    def __init__(self, place: Attachments, digest: str, keys: Sequence[PublicKey]) -> None:
        self._place = place
        self._digest = digest
        self._keys = keys
        self._untold: list[SourceError] = []

    async def signer(self) -> PublicKey | None:
        """As find_signer says."""
        signer = await self._under_tag() or await self._among_referrers()
        if signer is None and self._untold:
            raise self._untold[0]
        return signer

    async def _under_tag(self) -> PublicKey | None:
        manifest = await self._told(partial(self._place.tagged, fallback_tag(self._digest) + ".sig"))
        return await self._signer_in(manifest) if manifest is not None else None

    async def _among_referrers(self) -> PublicKey | None:
        links = await self._told(partial(self._place.referrers, self._digest, SIGNATURE_TYPE)) or ()
        for link in links[:_MAX_MANIFESTS]:
            manifest = await self._told(partial(self._place.document, link))
            signer = await self._signer_in(manifest) if manifest is not None else None
            if signer is not None:
                return signer
        return None

    async def _told(self, ask: Callable[[], Awaitable[T]]) -> T | None:
        """What is told; None where that is nothing that can be used."""
        try:
            return await ask()
        except NotFound:  # a list may be longer than what is there
            pass
        except IndexerError as error:
            self._pass_by(error)
        except SourceError as error:
            self._pass_by(error)
            self._untold.append(error)
        return None

    def _pass_by(self, error: Exception) -> None:
        _log.info("a signature of %s cannot be used: %s", self._digest, error)

    async def _signer_in(self, manifest: bytes) -> PublicKey | None:
        """The key that made one of the signatures that a manifest holds."""
        try:
            links = parse_manifest(manifest).layers[:_MAX_SIGNATURES]
        except IndexerError as error:
            self._pass_by(error)
            return None
        for link in links:
            signer = await self._signer_of(link)
            if signer is not None:
                return signer
        return None

    async def _signer_of(self, link: Descriptor) -> PublicKey | None:
        if link.media_type != PAYLOAD_TYPE:
            return None
        try:
            signature = _decoded(link.annotations.get(SIGNATURE_KEY, ""))
            payload = await self._told(partial(self._place.document, link, _MAX_PAYLOAD))
            if payload is None:
                return None
            signer = next((key for key in self._keys if key.verifies(signature, payload)), None)
            if signer is not None and _meant(payload) == self._digest:
                return signer
        except IndexerError as error:
            self._pass_by(error)
        return None


def _decoded(text: str) -> bytes:
    if not text or len(text) > _MAX_SIGNATURE:
        raise FormatError("a signature of impossible length")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise FormatError("a signature that is not base64") from None


def _meant(payload: bytes) -> str:
    """The digest that a signed payload names.

    Raises:
        FormatError: it is no payload of a signature of a manifest.
    """
    critical = parse_object(payload, "payload of a signature").child("critical")
    if critical.text("type") != _MEANS:
        raise FormatError(f"payload of a signature that means {critical.text('type')[:100]!r}")
    return critical.child("image").text("docker-manifest-digest")
