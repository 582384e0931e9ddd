"""Adds an artifact to the index under a fallback tag, where several may do so at once.

Registries that need that tag have no operation that adds to an index: one reads it, and puts a longer one in
its place. Who read before us and puts after us drops our entry without knowing it. So where the registry
gives an ETag we send it back (`If-Match`), which those that heed it refuse if another was faster; and since
many do not heed it, we look again after a pause that is longer than our own way from reading to putting took,
and add ourselves again if we were dropped.
"""

import json
import random
from typing import Any, Final

import trio

from lazyfs.errors import SourceError
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.media_types import OCI_INDEX
from lazyfs.source.http.answers import failure
from lazyfs.source.http.control import Reply
from lazyfs.source.push.artifact import descriptor_fields
from lazyfs.source.registry.host import Host
from lazyfs.source.registry.referrers import TagIndex, fallback_tag, read_tag_index

_ATTEMPTS: Final = 30
_SHORTEST_PAUSE_S: Final = 0.05
_CONFLICTS: Final = frozenset({409, 412})
_DANGLING: Final = frozenset({400, 404})  # with MANIFEST_BLOB_UNKNOWN or the like


async def add_to_tag(host: Host, subject: str, entry: Descriptor, actions: str) -> None:
    """See that `entry` stands in the index of what refers to `subject`, and that others' entries stay.

    Raises:
        Unauthorized, Unreachable, SourceError: the registry does not take it.
        FormatError: what is under the tag is no index.
    """
    for _ in range(_ATTEMPTS):
        began = trio.current_time()
        found = await read_tag_index(host, subject, actions)
        if any(other.digest == entry.digest for other in found.entries):
            return
        reply = await _put(host, subject, found, entry, actions)
        if reply.status in _DANGLING and found.entries:
            found = await _without_dangling(host, found, actions)
            reply = await _put(host, subject, found, entry, actions)
        if reply.status in _CONFLICTS:
            continue
        if reply.status != 201:
            raise failure(reply, _what(host, subject))
        pause_s = max(_SHORTEST_PAUSE_S, trio.current_time() - began)
        await trio.sleep(pause_s * random.uniform(1, 3))  # noqa: S311  # parts rivals, hides nothing
    raise SourceError(f"{_what(host, subject)}: what is put there does not stay, for others change it too")


def _what(host: Host, subject: str) -> str:
    return f"tag {fallback_tag(subject)!r} of {host.name}"


async def _put(host: Host, subject: str, found: TagIndex, entry: Descriptor, actions: str) -> Reply:
    condition = {"If-Match": found.etag} if found.etag else {} if found.data else {"If-None-Match": "*"}
    return await host.request(
        "PUT",
        f"/manifests/{fallback_tag(subject)}",
        _what(host, subject),
        headers={"Content-Type": OCI_INDEX, **condition},
        content=with_entry(found.data, entry),
        actions=actions,
    )


def with_entry(data: bytes, entry: Descriptor) -> bytes:
    """The index `data`, or an empty one for b"", with one more entry; all else stays as it is.

    Args:
        data: an index that has been parsed without complaint.
        entry: what to add at its end.
    """
    index: dict[str, Any] = (
        json.loads(data) if data else {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
    )
    index["manifests"] = [*(index.get("manifests") or ()), descriptor_fields(entry)]
    return json.dumps(index, separators=(",", ":")).encode()


async def _without_dangling(host: Host, found: TagIndex, actions: str) -> TagIndex:
    """The index without entries whose manifests are gone: a registry may refuse it for their sake."""
    gone = set()
    for entry in found.entries:
        answer = await host.request(
            "HEAD", f"/manifests/{entry.digest}", f"manifest {entry.digest} of {host.name}",
            headers={"Accept": entry.media_type}, actions=actions,
        )  # fmt: skip
        if answer.status == 404:
            gone.add(entry.digest)
    index = json.loads(found.data)
    index["manifests"] = [link for link in index["manifests"] if link["digest"] not in gone]
    return TagIndex(json.dumps(index, separators=(",", ":")).encode(), (), found.etag)
