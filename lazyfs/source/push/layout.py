"""Stores artifacts in an OCI layout on this machine (image-spec `image-layout.md`).

Every file appears whole under its name; `index.json` is replaced under a lock on the directory, so that what
several of us add at once is all there in the end. Tools that know no such lock may still undo each other.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final

import trio

from indexer.digest import digest_hex
from indexer.errors import FormatError
from lazyfs.errors import NotFound, NotWritable
from lazyfs.flock import directory_locked
from lazyfs.oci.media_types import OCI_INDEX
from lazyfs.source.local.layout import Directory, read_layout_index
from lazyfs.source.push.artifact import Artifact
from lazyfs.source.push.tag import with_entry

_LAYOUT: Final = b'{"imageLayoutVersion":"1.0.0"}'
_EMPTY_INDEX: Final = b'{"schemaVersion":2,"mediaType":"%s","manifests":[]}' % OCI_INDEX.encode()


class LayoutPublisher:
    """A Publisher into the layout at `path`, made if it is not there.

    Args:
        path: the layout's directory.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def __repr__(self) -> str:
        return f"<LayoutPublisher {self._path}>"

    async def publish(self, artifact: Artifact) -> bool:
        """As Publisher.publish says.

        Raises:
            NotWritable: the directory cannot be written.
            FormatError, Unsupported: it is no layout.
        """
        return await trio.to_thread.run_sync(self._publish, artifact)

    def _publish(self, artifact: Artifact) -> bool:
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            with directory_locked(self._path, follow=True):
                return self._publish_locked(artifact)
        except OSError as error:
            where = str(self._path)
            raise NotWritable(f"{where}: cannot be written: {error.strerror}", url=where) from error

    def _publish_locked(self, artifact: Artifact) -> bool:
        blobs = begin_layout(self._path)
        with Directory(self._path) as directory:
            data = directory.read("index.json")
            index = read_layout_index(directory.read("oci-layout"), data)
            contents = [*artifact.blobs, (artifact.descriptor, artifact.data)]
            missing = [(link, content) for link, content in contents if not _has(directory, link.digest)]
        for link, content in missing:
            write_whole(blobs / digest_hex(link.digest), content)
        if any(entry.digest == artifact.descriptor.digest for entry in index.manifests):
            return bool(missing)
        write_whole(self._path / "index.json", with_entry(data, artifact.descriptor))
        return True


def begin_layout(path: Path) -> Path:
    """The directory for blobs of the layout at `path`, made if it is not there; for who has it locked.

    Raises:
        FormatError: it is no layout, and has an `index.json` that is somebody else's.
    """
    marker, index = path / "oci-layout", path / "index.json"
    if not marker.exists():
        if index.exists():
            raise FormatError(f"{path}: holds an index.json, but no oci-layout: choose another directory")
        write_whole(marker, _LAYOUT)
    if not index.exists():
        write_whole(index, _EMPTY_INDEX)
    blobs = path / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    return blobs


def _has(directory: Directory, digest: str) -> bool:
    with suppress(NotFound):
        directory.find(digest)
        return True
    return False


def write_whole(path: Path, data: bytes | memoryview) -> None:
    """Put a file at `path`, whole and on disk before it has its name."""
    with partial_file(path) as file:
        file.write(data)


@contextmanager
def partial_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that comes to be at `path`, whole and on disk, if the block ends well; else nothing does."""
    made = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with made.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        made.replace(path)
    finally:
        made.unlink(missing_ok=True)
