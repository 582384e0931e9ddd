"""Image names with their transports, as skopeo and podman write them (containers-transports(5)).

[docker://]REFERENCE       an image in a registry
oci:DIRECTORY[:TAG]        an OCI image layout
oci-archive:FILE[:TAG]     an OCI image layout in a tar
docker-archive:FILE[:REF]  what `docker save` writes
"""

from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from lazyfs.errors import BadReference
from lazyfs.oci.reference import Reference, parse_reference

_ELSEWHERE = {
    "docker-daemon": "use `docker save -o FILE` and docker-archive:FILE",
    "containers-storage": "use `podman save --format oci-archive -o FILE` and oci-archive:FILE",
}


class RegistryImage(Struct, frozen=True):
    """An image in a registry."""

    reference: Reference

    def __str__(self) -> str:
        return f"docker://{self.reference}"


class LayoutImage(Struct, frozen=True):
    """An image in an OCI layout.

    Attributes:
        directory: where `oci-layout` lies.
        tag: the value of its `org.opencontainers.image.ref.name`, or "" for the only image.
    """

    directory: Path
    tag: str = ""

    def __str__(self) -> str:
        return _joined("oci", self.directory, self.tag)


class ArchiveImage(Struct, frozen=True):
    """An image in an OCI layout inside a tar.

    Attributes:
        file: the tar.
        tag: as for LayoutImage.
    """

    file: Path
    tag: str = ""

    def __str__(self) -> str:
        return _joined("oci-archive", self.file, self.tag)


class DockerArchiveImage(Struct, frozen=True):
    """An image in what `docker save` wrote.

    Attributes:
        file: the tar.
        reference: which of its images, or None for the only one.
    """

    file: Path
    reference: Reference | None = None

    def __str__(self) -> str:
        return _joined("docker-archive", self.file, str(self.reference or ""))


ImageName = RegistryImage | LayoutImage | ArchiveImage | DockerArchiveImage


def repository_of(name: ImageName) -> str:
    """Where an image is: the repository of one in a registry, else all of its name."""
    return f"docker://{name.reference.name}" if isinstance(name, RegistryImage) else str(name)


def parse_image(text: str) -> ImageName:
    """The image that `text` names; a name without a transport is one in a registry.

    Raises:
        BadReference: it names none.
    """
    transport, colon, rest = text.partition(":")
    if colon and transport in _ELSEWHERE:
        raise BadReference(f"{transport}: cannot be read directly; {_ELSEWHERE[transport]}")
    match transport if colon else "":
        case "docker" if rest.startswith("//"):
            return RegistryImage(parse_reference(rest[2:]))
        case "oci":
            return LayoutImage(*_path_and_tag(text, rest))
        case "oci-archive":
            return ArchiveImage(*_path_and_tag(text, rest))
        case "docker-archive":
            path, tag = _path_and_tag(text, rest)
            return DockerArchiveImage(path, parse_reference(tag) if tag else None)
        case _ if text.startswith(("/", "./", "../", "~/")):
            raise BadReference(
                f"{text[:200]!r} is a path: write oci:DIRECTORY for a layout, oci-archive:FILE or "
                "docker-archive:FILE for a tar"
            )
        case _:
            return RegistryImage(parse_reference(text))


def anchored(name: ImageName) -> ImageName:
    """The same image from whatever working directory: with an absolute path."""
    match name:
        case RegistryImage():
            return name
        case LayoutImage():
            return replace(name, directory=name.directory.absolute())
        case _:
            return replace(name, file=name.file.absolute())


def _path_and_tag(text: str, rest: str) -> tuple[Path, str]:
    """The path, up to the first ":", and what follows it."""
    transport, _, _ = text.partition(":")
    path, colon, tag = rest.partition(":")
    if not path or "\0" in rest or (colon and not tag):
        raise BadReference(f"{text[:200]!r}: write {transport}:PATH or {transport}:PATH:TAG")
    return Path(path), tag


def _joined(transport: str, path: Path, tag: str) -> str:
    return f"{transport}:{path}:{tag}" if tag else f"{transport}:{path}"
