"""What `lazyfs daemon` tells of images, asked by their names or by where they are mounted."""

import os
from pathlib import Path
from typing import Any

import trio

from lazyfs.errors import BadReference, NotFound, NotMounted, Unreachable
from lazyfs.mount.mounts import lower_directories, resolve_mount_point
from lazyfs.oci.image_name import RegistryImage, parse_image
from lazyfs.service.client import ServiceClient


def explain_images(socket: Path, image: str) -> list[dict[str, Any]]:
    """What the daemon behind a socket tells of an image, or of all if its name is "".

    Raises:
        BadReference: it can be no name.
        NotFound: the daemon knows no such image.
        Unreachable: it does not answer.
    """
    return trio.run(ServiceClient(socket, patience_s=0).explain, image and _canonical(image))


def explain_mount(socket: Path, directory: Path) -> dict[str, Any]:
    """What the daemon behind a socket tells of the image that it has mounted at a directory, or below it.

    Below it is what an overlay there lies over: the root of a container.

    Raises:
        NotMounted: it has mounted nothing there.
        Unreachable: it does not answer.
    """
    mount_point = resolve_mount_point(directory)
    paths = [os.fsdecode(path) for path in (mount_point, *lower_directories(mount_point))]
    try:
        return trio.run(ServiceClient(socket, patience_s=0).explain, "", paths)[0]
    except NotFound:
        raise NotMounted(f"nothing of lazyfs is mounted at {paths[0]}") from None


def explain_if_served(socket: Path, directory: Path) -> dict[str, Any] | None:
    """As `explain_mount`; None if nothing of the daemon's is there, or there is no daemon."""
    try:
        return explain_mount(socket, directory)
    except (NotMounted, Unreachable):
        return None


def _canonical(image: str) -> str:
    """A name as the daemon takes it; of images in registries only, as it has no others."""
    if image.startswith("sha256:"):
        return image
    name = parse_image(image)
    if not isinstance(name, RegistryImage):
        raise BadReference(f"{image[:200]!r}: the daemon has images of registries only")
    return str(name.reference)
