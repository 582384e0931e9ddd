"""Stores an artifact beside the image it speaks of: blobs, manifest, and the list that leads to it.

Sources: distribution-spec, "Pushing Manifests", "Pushing Manifests with Subject".
Whatever is there already is not sent again, so that to publish the same twice changes nothing.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from lazyfs.errors import BadReference, SourceError
from lazyfs.oci.image_name import ImageName, LayoutImage, RegistryImage
from lazyfs.oci.reference import Reference
from lazyfs.source.http.answers import failure
from lazyfs.source.http.settings import Capability, SourceSettings
from lazyfs.source.open import open_registry
from lazyfs.source.push.artifact import Artifact, Publisher
from lazyfs.source.push.blob import PUSH, BlobUploads
from lazyfs.source.push.layout import LayoutPublisher
from lazyfs.source.push.tag import add_to_tag
from lazyfs.source.registry.host import Host
from lazyfs.source.registry.referrers import list_referrers


class RegistryPublisher:
    """A Publisher into one repository of a registry.

    Args:
        host: the repository.
        mount_from: another repository of the registry that may hold the same blobs, or "".
    """

    def __init__(self, host: Host, mount_from: str = "") -> None:
        self._host = host
        self._uploads = BlobUploads(host, mount_from)

    def __repr__(self) -> str:
        return f"<RegistryPublisher {self._host.name}>"

    async def publish(self, artifact: Artifact) -> bool:
        """As Publisher.publish says."""
        digest, kind = artifact.descriptor.digest, artifact.descriptor.artifact_type
        listing = await list_referrers(self._host, artifact.subject, kind, PUSH)
        listed = any(entry.digest == digest for entry in listing.entries)
        if listed and await self._uploads.has(f"/manifests/{digest}", artifact.descriptor.media_type):
            return False
        for descriptor, data in artifact.blobs:
            await self._uploads.send(descriptor, data)
        kept_by_registry = await self._send_manifest(artifact)
        if not (kept_by_registry or listing.by_api):
            await add_to_tag(self._host, artifact.subject, artifact.descriptor, PUSH)
        return True

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
            async with open_repository(reference, settings, image) as (host, mount_from):
                yield RegistryPublisher(host, mount_from)
        case LayoutImage(directory):
            yield LayoutPublisher(directory)
        case _:
            raise BadReference(f"{name}: nothing can be added to an archive; name a place with --index-repo")


@asynccontextmanager
async def open_repository(
    reference: Reference, settings: SourceSettings, image: ImageName | None
) -> AsyncIterator[tuple[Host, str]]:
    """Where to push to, and the repository of the same registry, or "", that may hold an image's blobs.

    Raises:
        SourceError: no host of the registry may be pushed to.
        ConfigError: a certificate or key cannot be used.
    """
    mount_from = ""
    if isinstance(image, RegistryImage) and image.reference.registry == reference.registry:
        mount_from = image.reference.repository
    async with open_registry(reference, settings) as source:
        able = [host for host in source.hosts if host.can(Capability.PUSH)]
        if not able:
            raise SourceError(f"{reference.name}: its hosts are configured not to be pushed to")
        same = mount_from == reference.repository
        yield able[-1], "" if same else mount_from
