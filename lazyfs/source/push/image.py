"""Stores a whole image under a tag: layers from wherever they are, configuration and manifest."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Protocol

import trio
from msgspec import Struct

from indexer.digest import digest_hex
from lazyfs.errors import BadReference, NotWritable
from lazyfs.flock import directory_locked
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.image_name import ImageName, LayoutImage, RegistryImage
from lazyfs.source.base import Blob
from lazyfs.source.copying import copy_blob
from lazyfs.source.http.answers import failure
from lazyfs.source.http.settings import SourceSettings
from lazyfs.source.local.layout import read_layout_index
from lazyfs.source.local.source import REF_NAME
from lazyfs.source.push.artifact import descriptor_fields
from lazyfs.source.push.blob import PUSH, BlobUploads
from lazyfs.source.push.layout import begin_layout, partial_file, write_whole
from lazyfs.source.push.publisher import open_repository
from lazyfs.source.registry.host import Host

DEFAULT_TAG: Final = "latest"


class ImageToStore(Struct, frozen=True):
    """An image's documents, and where its layers are.

    Attributes:
        layers: links to them, and where they come from.
        config: the configuration, with a link to it.
        manifest: the manifest, with a link to it.
    """

    layers: Sequence[tuple[Descriptor, Blob]]
    config: tuple[Descriptor, bytes]
    manifest: tuple[Descriptor, bytes]


class ImageStore(Protocol):
    """Stores images under one name. What is there already is not sent again."""

    async def store(self, image: ImageToStore) -> None:
        """Store an image, so that the name stands for it.

        Raises:
            Unauthorized, Unreachable, SourceError: it cannot be stored, or a layer cannot be had.
            IndexerError: a layer is something else than its link says.
        """


class RegistryImageStore:
    """An ImageStore in a registry.

    Args:
        host: the repository.
        tag: the image's tag.
        mount_from: another repository of the registry that may hold the layers, or "".
    """

    def __init__(self, host: Host, tag: str, mount_from: str = "") -> None:
        self._host = host
        self._tag = tag
        self._uploads = BlobUploads(host, mount_from)

    async def store(self, image: ImageToStore) -> None:
        """As ImageStore.store says."""
        for link, blob in image.layers:
            await self._uploads.copy(link, blob)
        await self._uploads.send(*image.config)
        link, data = image.manifest
        what = f"manifest {self._tag} to {self._host.name}"
        headers = {"Content-Type": link.media_type}
        reply = await self._host.request(
            "PUT", f"/manifests/{self._tag}", what, headers=headers, content=data, actions=PUSH
        )
        if reply.status != 201:
            raise failure(reply, what)


class LayoutImageStore:
    """An ImageStore in an OCI layout, which is made if it is not there (image-spec `image-layout.md`).

    Args:
        path: the layout's directory.
        tag: the image's tag; an image that had it stays, without a name.
    """

    def __init__(self, path: Path, tag: str) -> None:
        self._path = path
        self._tag = tag

    async def store(self, image: ImageToStore) -> None:
        """As ImageStore.store says."""
        try:
            blobs = await trio.to_thread.run_sync(self._begin)
            for link, blob in image.layers:
                await _copy(blob, link, blobs / digest_hex(link.digest))
            await trio.to_thread.run_sync(self._finish, blobs, image)
        except OSError as error:
            where = str(self._path)
            raise NotWritable(f"{where}: cannot be written: {error.strerror}", url=where) from error

    def _begin(self) -> Path:
        self._path.mkdir(parents=True, exist_ok=True)
        with directory_locked(self._path, follow=True):
            return begin_layout(self._path)

    def _finish(self, blobs: Path, image: ImageToStore) -> None:
        for link, data in (image.config, image.manifest):
            write_whole(blobs / digest_hex(link.digest), data)
        with directory_locked(self._path, follow=True):
            data = (self._path / "index.json").read_bytes()
            read_layout_index((self._path / "oci-layout").read_bytes(), data)
            write_whole(self._path / "index.json", tagged(data, image.manifest[0], self._tag))


async def _copy(blob: Blob, link: Descriptor, path: Path) -> None:
    if path.exists() and path.stat().st_size == link.size:  # noqa: ASYNC240  # one look
        return
    with partial_file(path) as file:

        def write(piece: memoryview) -> None:
            file.write(piece)

        await copy_blob(blob, link, write)


def tagged(index: bytes, link: Descriptor, tag: str) -> bytes:
    """A layout's index in which `tag` names what `link` leads to, and nothing else.

    Args:
        index: the index so far, parsed without complaint.
        link: to a manifest.
        tag: its tag.
    """
    document = json.loads(index)
    kept = []
    for entry in document.get("manifests") or ():
        if (entry.get("annotations") or {}).get(REF_NAME) == tag:
            continue
        kept.append(entry)
    kept.append({**descriptor_fields(link), "annotations": {REF_NAME: tag}})
    document["manifests"] = kept
    return json.dumps(document, separators=(",", ":")).encode()


@asynccontextmanager
async def open_image_store(
    name: ImageName, settings: SourceSettings, *, base: ImageName | None = None
) -> AsyncIterator[ImageStore]:
    """Stores an image under a name.

    Args:
        name: which.
        settings: how to reach registries.
        base: another image of which the new one has layers.

    Raises:
        BadReference: nothing can be stored there.
        SourceError: no host of the registry may be pushed to.
        ConfigError: a certificate or key cannot be used.
    """
    match name:
        case RegistryImage(reference) if not reference.digest:
            async with open_repository(reference, settings, base) as (host, mount_from):
                yield RegistryImageStore(host, reference.tag or DEFAULT_TAG, mount_from)
        case LayoutImage(directory, tag):
            yield LayoutImageStore(directory, tag or DEFAULT_TAG)
        case _:
            raise BadReference(f"{name}: an image is stored as oci:DIR[:TAG] or REPOSITORY[:TAG]")
