"""An artifact ready to be stored, how links to it are written, and who stores it."""

from typing import Any, Protocol

from msgspec import Struct

from lazyfs.oci.descriptor import Descriptor


class Artifact(Struct, frozen=True):
    """A manifest that refers to another, with everything below it, ready to be stored.

    Attributes:
        data: the manifest's exact bytes.
        descriptor: link to it, with its artifact type and its annotations.
        subject: digest of the manifest it refers to.
        blobs: its configuration and layers.
    """

    data: bytes
    descriptor: Descriptor
    subject: str
    blobs: tuple[tuple[Descriptor, bytes | memoryview], ...]


class Publisher(Protocol):
    """Stores artifacts somewhere."""

    async def publish(self, artifact: Artifact) -> bool:
        """Store it; False if it was there already, and nothing changed.

        Raises:
            Unauthorized, Unreachable, SourceError: it cannot be stored there.
            FormatError, LimitExceeded: what is there already makes no sense.
        """


def descriptor_fields(descriptor: Descriptor) -> dict[str, Any]:
    """A descriptor as it stands in a document."""
    fields: dict[str, Any] = {
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest,
        "size": descriptor.size,
    }
    if descriptor.artifact_type:
        fields["artifactType"] = descriptor.artifact_type
    if descriptor.annotations:
        fields["annotations"] = dict(descriptor.annotations)
    return fields
