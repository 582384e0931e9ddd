"""Which of the artifacts beside an image count, as `demands` has it."""

import logging
from collections.abc import Sequence

from msgspec import Struct

from lazyfs.errors import SourceError, Unreachable
from lazyfs.image.trust.demands import Demands
from lazyfs.image.trust.signatures import find_signer
from lazyfs.oci.descriptor import Descriptor
from lazyfs.source.attachments import Attachments

_log = logging.getLogger(__name__)


class Place(Struct, frozen=True):
    """Where indexes and boot packs may be.

    Attributes:
        name: for people, and to know it again.
        attachments: what is attached to images there.
        configured: whether the user named it, apart from the image.
    """

    name: str
    attachments: Attachments
    configured: bool


def may_count(place: Place, demands: Demands) -> bool:
    """Whether anything there can count."""
    return demands.admits(configured=place.configured, signed=bool(demands.keys))


async def counted(place: Place, links: Sequence[Descriptor], demands: Demands, kind: str) -> list[Descriptor]:
    """Those of some links that count, signed ones first.

    Args:
        place: where they were found.
        links: in the order in which they are to be tried.
        demands: what is demanded of them.
        kind: what they lead to, for messages.

    Raises:
        Unreachable: the repository does not answer.
    """
    unsigned_count = demands.admits(configured=place.configured, signed=False)
    if unsigned_count and (len(links) < 2 or not demands.keys):
        return list(links)
    signed = [link for link in links if await _is_signed(place, link, demands)]
    for link in links:
        if link not in signed and not unsigned_count:
            _log.warning("%s %s in %s is not used: no key of ours signed it", kind, link.digest, place.name)
    return [*signed, *(link for link in links if unsigned_count and link not in signed)]


async def _is_signed(place: Place, link: Descriptor, demands: Demands) -> bool:
    """Whether one is; what cannot be known of it must not keep the others from being used.

    Raises:
        Unreachable: nobody answers.
    """
    try:
        return (await find_signer(place.attachments, link.digest, demands.keys)).signer is not None
    except SourceError as error:
        if isinstance(error, Unreachable) and error.status is None:
            raise
        _log.warning("signatures of %s in %s are not told: %s", link.digest, place.name, error)
        return False
