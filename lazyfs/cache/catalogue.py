"""Which images are kept here, of what, and which of them are pinned: what else there is, nobody refers to."""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import asdict, replace

from lazyfs.cache.files import cache_errors, read_bounded
from lazyfs.cache.scratch import Scratch
from lazyfs.errors import CacheError
from lazyfs.flock import directory_locked

_log = logging.getLogger(__name__)

_LARGEST: Final = 1 << 22


class KeptImage(Struct, frozen=True):
    """An image that was opened here.

    Attributes:
        name: as it was asked for, in canonical form.
        manifest: digest of its manifest.
        documents: digests of the documents that lead to its layers.
        layers: digest of each layer and of the table of contents it is read by, the lowest first.
        metadata: key of its metadata image.
        pinned: whether its content is never evicted.
    """

    name: str
    manifest: str
    documents: tuple[str, ...]
    layers: tuple[tuple[str, str], ...]
    metadata: str
    pinned: bool = False


class Listed(Struct, frozen=True):
    """An image of the catalogue.

    Attributes:
        image: the image.
        last_used: when it was last opened, seconds since 1970.
    """

    image: KeptImage
    last_used: float


class Catalogue:
    """A file for each image, its modification time that of its last use. Writers lock the directory."""

    def __init__(self, directory: Path, scratch: Scratch) -> None:
        self._directory = directory
        self._scratch = scratch

    def note(self, image: KeptImage) -> None:
        """An image is used: keeps its record, or renews it. A pin stays; failures are logged."""
        path = self._path(image.name, image.manifest)
        try:
            with cache_errors("note that an image is used"), directory_locked(self._directory):
                there = self._load(path)
                noted = replace(image, pinned=there is not None and there.image.pinned)
                if there is not None and there.image == noted:
                    os.utime(path)
                else:
                    self._write(path, noted)
        except CacheError as error:
            _log.info("%s", error)

    def pin(self, image: KeptImage) -> None:
        """Keeps an image's content from now on.

        Raises:
            CacheError: there is no room, or the disk fails.
        """
        with cache_errors("pin an image"), directory_locked(self._directory):
            self._write(self._path(image.name, image.manifest), replace(image, pinned=True))

    def unpin(self, listed: Sequence[Listed]) -> None:
        """Lets images' content go as it comes.

        Raises:
            CacheError: there is no room, or the disk fails.
        """
        with cache_errors("unpin an image"), directory_locked(self._directory):
            for path in [self._path(one.image.name, one.image.manifest) for one in listed]:
                there = self._load(path)
                if there is not None:
                    self._write(path, replace(there.image, pinned=False))
                    os.utime(path, (there.last_used, there.last_used))

    def remove(self, image: KeptImage) -> None:
        """Forgets an image; its parts stay until they are collected.

        Raises:
            CacheError: the disk fails.
        """
        with cache_errors("forget an image"):
            self._scratch.discard(self._path(image.name, image.manifest))

    def images(self) -> list[Listed]:
        """All images, the one last used first. Records that cannot be read do not count."""
        found = [listed for listed in map(self._load, self._paths()) if listed is not None]
        return sorted(found, key=lambda listed: -listed.last_used)

    def pinned_layers(self) -> frozenset[str]:
        """Digests of the layers of all pinned images."""
        images = (listed.image for listed in self.images())
        return frozenset(layer for image in images if image.pinned for layer, _ in image.layers)

    def _paths(self) -> Iterator[Path]:
        with suppress(OSError):
            yield from self._directory.glob("*.json")

    def _write(self, path: Path, image: KeptImage) -> None:
        self._scratch.write(path, json.dumps(asdict(image), indent=1).encode())

    def _load(self, path: Path) -> Listed | None:
        with suppress(OSError, ValueError, RecursionError):
            data = read_bounded(path, _LARGEST)
            if data is not None:
                image = _decoded(json.loads(data))
                return Listed(image, path.stat().st_mtime) if image else None
        return None

    def _path(self, name: str, manifest: str) -> Path:
        key = f"{name}\0{manifest}".encode("utf-8", "surrogatepass")
        return self._directory / f"{sha256(key).hexdigest()}.json"


def _decoded(record: Any) -> KeptImage | None:
    match record:
        case {
            "name": str(name),
            "manifest": str(manifest),
            "documents": [*documents],
            "layers": [*layers],
            "metadata": str(metadata),
            "pinned": bool(pinned),
        } if all(isinstance(digest, str) for digest in documents):
            pairs = tuple(pair for pair in map(_pair, layers) if pair is not None)
            if len(pairs) == len(layers):
                return KeptImage(name, manifest, tuple(documents), pairs, metadata, pinned)
    return None


def _pair(layer: Any) -> tuple[str, str] | None:
    match layer:
        case [str(layer_digest), str(toc_digest)]:
            return layer_digest, toc_digest
    return None
