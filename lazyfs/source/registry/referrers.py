"""What refers to a manifest in a registry: told by the referrers API, or by the tag that stands in for it.

Sources: distribution-spec, "Listing Referrers", "Referrers Tag Schema", "Unavailable Referrers API".
"""

import re
from typing import Final
from urllib.parse import quote

from msgspec import Struct

from lazyfs.errors import NotFound
from lazyfs.oci.descriptor import Descriptor, readable_digest
from lazyfs.oci.json_fields import MAX_DOCUMENT_BYTES
from lazyfs.oci.manifest import Index, parse_index
from lazyfs.oci.media_types import OCI_INDEX, essence
from lazyfs.source.http.answers import failure
from lazyfs.source.http.urls import redirect_target
from lazyfs.source.registry.host import PULL, Host

MAX_PAGES: Final = 8
MAX_ENTRIES: Final = 1000

# The specification says 404. Registries that know no such path have said the others; go-containerregistry
# takes 400 and 406 for a no as well (`pkg/v1/remote/referrers.go`).
_NOT_OFFERED: Final = frozenset({400, 404, 405, 406, 501})
_NEXT: Final = re.compile(r'<([^<>]{1,4096})>[^<>,]*;\s*rel="?next"?', re.ASCII)
_NOT_IN_TAGS: Final = re.compile(r"[^A-Za-z0-9._-]", re.ASCII)


class Listing(Struct, frozen=True):
    """What refers to a manifest.

    Attributes:
        entries: links to manifests, in the order given.
        by_api: whether the referrers API told, which then also keeps the list.
    """

    entries: tuple[Descriptor, ...]
    by_api: bool


class TagIndex(Struct, frozen=True):
    """The index under the tag that stands in for the API.

    Attributes:
        data: its exact bytes; b"" where there is none.
        entries: links to manifests.
        etag: what to compare with when it is replaced; "" if the registry gives nothing.
    """

    data: bytes
    entries: tuple[Descriptor, ...]
    etag: str


def fallback_tag(digest: str) -> str:
    """The tag of the index of what refers to `digest`, where there is no referrers API."""
    algorithm, _, encoded = digest.partition(":")
    return f"{_NOT_IN_TAGS.sub('-', algorithm)[:32]}-{_NOT_IN_TAGS.sub('-', encoded)[:64]}"


async def list_referrers(host: Host, digest: str, artifact_type: str, actions: str = PULL) -> Listing:
    """The artifacts of one type that refer to a manifest; none is no error.

    Args:
        host: the repository that holds them.
        digest: of the manifest.
        artifact_type: which of them; "" for all.
        actions: what the token is to allow.

    Raises:
        Unauthorized, Unreachable, SourceError: the registry does not tell.
        FormatError: what it tells is no index.
        LimitExceeded: it is too long.
    """
    readable_digest(digest)
    told = await _by_api(host, digest, artifact_type, actions)
    found = told if told is not None else (await read_tag_index(host, digest, actions)).entries
    return Listing(
        tuple(entry for entry in found if artifact_type in ("", entry.artifact_type))[:MAX_ENTRIES],
        by_api=told is not None,
    )


async def _by_api(host: Host, digest: str, artifact_type: str, actions: str) -> tuple[Descriptor, ...] | None:
    """What the referrers API tells; None where there is none."""
    what = f"referrers of {digest} in {host.name}"
    wanted = f"?artifactType={quote(artifact_type, safe='')}" if artifact_type else ""
    path = f"/referrers/{digest}{wanted}"
    entries: list[Descriptor] = []
    for page in range(MAX_PAGES):
        reply = await host.request(
            "GET", path, what, headers={"Accept": OCI_INDEX}, actions=actions, max_bytes=MAX_DOCUMENT_BYTES
        )
        is_index = essence(reply.header("content-type")) == OCI_INDEX
        if page == 0 and (reply.status in _NOT_OFFERED or (reply.status == 200 and not is_index)):
            return None
        if reply.status != 200:
            raise failure(reply, what)
        entries += parse_index(reply.body, OCI_INDEX).manifests
        following = _NEXT.search(reply.header("link"))
        if not following or len(entries) > MAX_ENTRIES:
            break
        path = redirect_target(reply.url, following[1])
    return tuple(entries)


async def read_tag_index(host: Host, digest: str, actions: str = PULL) -> TagIndex:
    """The index of what refers to `digest` under its fallback tag.

    Raises:
        Unauthorized, Unreachable, SourceError: the registry does not tell.
        FormatError: what is there is no index.
    """
    what = f"tag {fallback_tag(digest)!r} of {host.name}"
    reply = await host.request(
        "GET", f"/manifests/{fallback_tag(digest)}", what,
        headers={"Accept": OCI_INDEX}, actions=actions, max_bytes=MAX_DOCUMENT_BYTES,
    )  # fmt: skip
    if reply.status != 200:
        error = failure(reply, what)
        if isinstance(error, NotFound):
            return TagIndex(b"", (), "")
        raise error
    index: Index = parse_index(reply.body, OCI_INDEX)
    return TagIndex(reply.body, index.manifests, reply.header("etag"))
