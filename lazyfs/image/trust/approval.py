"""Whether an image may be opened at all, where signatures are demanded."""

import logging
import time
from collections.abc import Iterable
from typing import Final

from lazyfs.cache.references import References
from lazyfs.errors import CacheError, NotTrusted
from lazyfs.image.resolve import ResolvedImage
from lazyfs.image.trust.demands import Demands
from lazyfs.image.trust.keys import PublicKey
from lazyfs.image.trust.signatures import Finding, find_signer
from lazyfs.source.attachments import Attachments

_log = logging.getLogger(__name__)

_SIGNED: Final = {"signed": True}


async def approve(
    resolved: ResolvedImage,
    demands: Demands,
    place: Attachments | None,
    references: References,
    *,
    offline: bool = False,
) -> None:
    """See that a trusted key signed the image's manifest, or the index that led to it, if that is demanded.

    That a key signed a digest stays true, so it is remembered and looked up once.

    Args:
        resolved: the image.
        demands: what is demanded of it.
        place: its repository; None where no signature can be.
        references: where it is remembered.
        offline: ask nobody.

    Raises:
        NotTrusted: none did.
        Unauthorized, Unreachable, SourceError: the repository does not tell.
    """
    if not demands.signed:
        return
    digests = dict.fromkeys((resolved.root.digest, resolved.descriptor.digest))
    if any(_is_remembered(references, digest, demands.keys) for digest in digests):
        return
    asked = place if not offline else None
    certified = False
    for digest in digests:
        finding = await find_signer(asked, digest, demands.keys) if asked else Finding()
        if finding.signer is not None:
            _log.info("%s is signed by %s", resolved.name, finding.signer.name)
            _remember(references, digest, finding.signer)
            return
        certified = certified or finding.certified
    names = ", ".join(key.name for key in demands.keys)
    why = "; there are signatures by certificates (keyless), but these are not checked" if certified else ""
    raise NotTrusted(f"{resolved.name}: refused: {resolved.root.digest} is not signed by {names}{why}")


def _record(digest: str, key: PublicKey) -> str:
    return f"signed {digest} by {key.fingerprint}"


def _is_remembered(references: References, digest: str, keys: Iterable[PublicKey]) -> bool:
    try:
        found = [references.recall(_record(digest, key)) for key in keys]
    except CacheError as error:
        _log.warning("%s", error)
        return False
    return any(record is not None and record.descriptor == _SIGNED for record in found)


def _remember(references: References, digest: str, key: PublicKey) -> None:
    try:
        references.remember(_record(digest, key), _SIGNED, time.time())
    except CacheError as error:
        _log.warning("%s", error)
