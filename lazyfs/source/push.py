"""Stores an artifact beside the image it speaks of: blobs, manifest, and the list that leads to it.

Sources: distribution-spec, "Pushing blobs", "Pushing Manifests", "Pushing Manifests with Subject".
Whatever is there already is not sent again, so that to publish the same twice changes nothing.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import quote

from lazyfs.errors import BadReference, SourceError
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.image_name import ImageName, LayoutImage, RegistryImage
from lazyfs.source.answers import failure
from lazyfs.source.host import Host
from lazyfs.source.open import open_registry
from lazyfs.source.push_artifact import Artifact, Publisher
from lazyfs.source.push_layout import LayoutPublisher
from lazyfs.source.push_tag import add_to_tag
from lazyfs.source.referrers import list_referrers
from lazyfs.source.settings import Capability, SourceSettings
from lazyfs.source.urls import redirect_target

PUSH: Final = "pull,push"

_UPLOAD_ATTEMPTS: Final = 3
# What a registry says of an upload that it has lost, or of which it holds a part from an attempt before.
_BEGIN_ANEW: Final = frozenset({400, 404, 416})


class RegistryPublisher:
    """A Publisher into one repository of a registry.

    Args:
        host: the repository.
        mount_from: another repository of the registry that may hold the same blobs, or "".
    """

    def __init__(self, host: Host, mount_from: str = "") -> None:
        self._host = host
        self._mount_from = mount_from

    def __repr__(self) -> str:
        return f"<RegistryPublisher {self._host.name}>"

    async def publish(self, artifact: Artifact) -> bool:
        """As Publisher.publish says."""
        digest, kind = artifact.descriptor.digest, artifact.descriptor.artifact_type
        listing = await list_referrers(self._host, artifact.subject, kind, PUSH)
        listed = any(entry.digest == digest for entry in listing.entries)
        if listed and await self._has(f"/manifests/{digest}", artifact.descriptor.media_type):
            return False
        for descriptor, data in artifact.blobs:
            await self._send_blob(descriptor, data)
        kept_by_registry = await self._send_manifest(artifact)
        if not (kept_by_registry or listing.by_api):
            await add_to_tag(self._host, artifact.subject, artifact.descriptor, PUSH)
        return True

    async def _has(self, path: str, accept: str) -> bool:
        reply = await self._host.request(
            "HEAD", path, f"{path[1:]} of {self._host.name}", headers={"Accept": accept}, actions=PUSH
        )
        return reply.status == 200

    async def _send_blob(self, descriptor: Descriptor, data: bytes | memoryview) -> None:
        if await self._has(f"/blobs/{descriptor.digest}", "*/*"):
            return
        what = f"upload of {descriptor.digest} to {self._host.name}"
        for attempt in range(_UPLOAD_ATTEMPTS):
            location = await self._begin(descriptor.digest, what)
            if location is None:
                return
            reply = await self._host.request(
                "PUT",
                f"{location}{'&' if '?' in location else '?'}digest={quote(descriptor.digest, safe='')}",
                what,
                headers={"Content-Type": "application/octet-stream"},
                content=bytes(data),
                actions=PUSH,
            )
            if reply.status == 201:
                return
            if reply.status not in _BEGIN_ANEW or attempt == _UPLOAD_ATTEMPTS - 1:
                raise failure(reply, what)

    async def _begin(self, digest: str, what: str) -> str | None:
        """Where to send a blob; None if the registry could take it from another repository."""
        path = "/blobs/uploads/"
        if self._mount_from:
            path += f"?mount={quote(digest, safe='')}&from={quote(self._mount_from, safe='')}"
        reply = await self._host.request("POST", path, what, actions=PUSH)
        if reply.status == 201:
            return None
        if reply.status != 202:
            raise failure(reply, what)
        return redirect_target(reply.url, reply.header("location"))

    async def _send_manifest(self, artifact: Artifact) -> bool:
        """Whether the registry says that it keeps the list of what refers to the subject."""
        what = f"manifest {artifact.descriptor.digest} to {self._host.name}"
        reply = await self._host.request(
            "PUT",
            f"/manifests/{artifact.descriptor.digest}",
            what,
            headers={"Content-Type": artifact.descriptor.media_type},
            content=artifact.data,
            actions=PUSH,
        )
        if reply.status != 201:
            raise failure(reply, what)
        return bool(reply.header("oci-subject"))


@asynccontextmanager
async def open_publisher(
    name: ImageName, settings: SourceSettings, *, image: ImageName | None = None
) -> AsyncIterator[Publisher]:
    """Stores artifacts in the repository of `name`, of which tag and digest do not matter.

    Args:
        name: where to.
        settings: how to reach registries.
        image: what the artifacts speak of, where that lies elsewhere.

    Raises:
        BadReference: nothing can be added there.
        SourceError: no host of the registry may be pushed to.
        ConfigError: a certificate or key cannot be used.
    """
    match name:
        case RegistryImage(reference):
            mount_from = ""
            if isinstance(image, RegistryImage) and image.reference.registry == reference.registry:
                mount_from = image.reference.repository
            async with open_registry(reference, settings) as source:
                able = [host for host in source.hosts if host.can(Capability.PUSH)]
                if not able:
                    raise SourceError(f"{reference.name}: its hosts are configured not to be pushed to")
                same = mount_from == reference.repository
                yield RegistryPublisher(able[-1], "" if same else mount_from)
        case LayoutImage(directory):
            yield LayoutPublisher(directory)
        case _:
            raise BadReference(f"{name}: nothing can be added to an archive; name a place with --index-repo")
