"""Who signed an image or an index: signatures are looked for beside it, in either format of cosign's.

Each format has a module: `simple_signing` what cosign wrote before its version 3, under a tag or (`oci-1-1`
mode) as a referrer; `sigstore_bundle` what it writes since, as a referrer.
"""

import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Final, Protocol, TypeVar

from msgspec import Struct

from indexer.errors import FormatError, IndexerError
from lazyfs.errors import NotFound, SourceError
from lazyfs.image.trust.keys import PublicKey
from lazyfs.image.trust.sigstore_bundle import BUNDLE_TYPES, MAX_BUNDLE, may_sign, parse_bundle
from lazyfs.image.trust.simple_signing import MAX_PAYLOAD, PAYLOAD_TYPE, SIGNATURE_TYPE, parse_signature
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.manifest import Manifest, parse_manifest
from lazyfs.oci.media_types import OCI_EMPTY
from lazyfs.source.attachments import Attachments
from lazyfs.source.registry.referrers import fallback_tag

_log = logging.getLogger(__name__)

T = TypeVar("T")

_MAX_SIGNATURES: Final = 32
_MAX_MANIFESTS: Final = 16
_MAX_BUNDLES: Final = 32  # attestations are bundles, too, and not all of them say so

# What earlier releases of cosign 3 put into the index under a fallback tag instead of a bundle's type
# (sigstore/cosign issue 4641), and some registries into their answers: only its manifest tells what it is.
_UNTOLD_TYPES: Final = (OCI_EMPTY, "")


class Finding(Struct, frozen=True):
    """What the signatures of a manifest came to.

    Attributes:
        signer: a key of ours that made one; None if none did.
        certified: whether some were found that go by a certificate instead of a key: these are not checked.
    """

    signer: PublicKey | None = None
    certified: bool = False


class Signed(Protocol):
    """Bytes and a signature of them, in whatever format, not checked."""

    @property
    def signature(self) -> bytes:
        """Its bytes."""

    @property
    def message(self) -> bytes | None:
        """The exact bytes that were signed; None where they are those of the manifest that is meant."""

    @property
    def certified(self) -> bool:
        """Whether a certificate says whose signature it is."""

    def names(self, digest: str) -> bool:
        """Whether it is said there that the manifest of this digest is signed.

        Raises:
            FormatError, LimitExceeded: what is said makes no sense, or is something else.
        """


async def find_signer(place: Attachments, digest: str, keys: Sequence[PublicKey]) -> Finding:
    """Which of the keys signed the manifest of this digest, by the signatures in `place`.

    What is no signature, or that of somebody else, is passed by; and so is what cannot be had, as long as
    a good signature is found elsewhere.

    Raises:
        Unauthorized, Unreachable, SourceError: none was found, and the repository does not tell all.
    """
    return await _Search(place, digest, keys).finding() if keys else Finding()


class _Search:
    """For one signature of a manifest that one of the keys made."""

    def __init__(self, place: Attachments, digest: str, keys: Sequence[PublicKey]) -> None:
        self._place = place
        self._digest = digest
        self._keys = keys
        self._own: bytes | None = None
        self._certified = False
        self._untold: list[SourceError] = []

    async def finding(self) -> Finding:
        """As find_signer says."""
        signer = await self._under_tag() or await self._among_referrers()
        if signer is None and self._untold:
            raise self._untold[0]
        return Finding(signer, self._certified)

    async def _under_tag(self) -> PublicKey | None:
        manifest = await self._told(partial(self._place.tagged, fallback_tag(self._digest) + ".sig"))
        return await self._signer_in(manifest) if manifest is not None else None

    async def _among_referrers(self) -> PublicKey | None:
        for list_links in (self._simple, self._bundles):
            for link in await list_links():
                manifest = await self._told(partial(self._place.document, link))
                signer = await self._signer_in(manifest) if manifest is not None else None
                if signer is not None:
                    return signer
        return None

    async def _simple(self) -> Sequence[Descriptor]:
        links = await self._told(partial(self._place.referrers, self._digest, SIGNATURE_TYPE)) or ()
        return links[:_MAX_MANIFESTS]

    async def _bundles(self) -> Sequence[Descriptor]:
        types = (*BUNDLE_TYPES, *_UNTOLD_TYPES)
        links = await self._told(partial(self._place.referrers, self._digest, *types)) or ()
        # What is for a platform is an image: GitLab takes the fallback tag of an index for the index itself
        # (oras-project/oras-go issue 1396).
        links = [link for link in links if link.platform is None and may_sign(link.annotations)]
        return links[:_MAX_BUNDLES]

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

    async def _signer_in(self, data: bytes) -> PublicKey | None:
        """The key that made one of the signatures that a manifest holds."""
        try:
            manifest = parse_manifest(data)
        except IndexerError as error:
            self._pass_by(error)
            return None
        for link in _links_in(manifest):
            try:
                signer = await self._signer_of(link, manifest.subject)
            except IndexerError as error:
                self._pass_by(error)
                continue
            if signer is not None:
                return signer
        return None

    async def _signer_of(self, link: Descriptor, subject: Descriptor | None) -> PublicKey | None:
        """The key that made a signature.

        Raises:
            FormatError, LimitExceeded: it is none.
        """
        limit = MAX_PAYLOAD if link.media_type == PAYLOAD_TYPE else MAX_BUNDLE
        data = await self._told(partial(self._place.document, link, limit))
        if data is None:
            return None
        signed = _read(link, data)
        message = await self._message_of(signed, subject)
        if message is None:
            return None
        signer = next((key for key in self._keys if key.verifies(signed.signature, message)), None)
        if (signer is None and not signed.certified) or not signed.names(self._digest):
            return None
        self._certified = self._certified or signer is None
        return signer

    async def _message_of(self, signed: Signed, subject: Descriptor | None) -> bytes | None:
        if signed.message is not None:
            return signed.message
        if subject is None or subject.digest != self._digest or not signed.names(self._digest):
            raise FormatError("a signature of another manifest")
        if self._own is None:
            self._own = await self._told(partial(self._place.document, subject))
        return self._own


def _links_in(manifest: Manifest) -> Iterator[Descriptor]:
    """Links to the signatures that a manifest holds: many in the older format, one bundle."""
    if may_sign(manifest.annotations):
        yield from [link for link in manifest.layers if link.media_type == PAYLOAD_TYPE][:_MAX_SIGNATURES]
        yield from [link for link in manifest.layers if link.media_type in BUNDLE_TYPES][:1]


def _read(link: Descriptor, data: bytes) -> Signed:
    if link.media_type == PAYLOAD_TYPE:
        return parse_signature(link.annotations, data)
    return parse_bundle(data)
