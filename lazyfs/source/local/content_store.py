"""containerd's content store as a place to pull layers from that were downloaded here anyway.

It holds whole blobs under their digests, `blobs/sha256/HEX` (containerd, `docs/content-flow.md`). They may go
at any time: what is not there comes from the registry. Whoever pulls them checks what comes, and has to pull
from the registry alone what was damaged here.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import trio

from indexer.digest import digest_hex
from indexer.errors import FormatError, IndexerError
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.json_fields import MAX_DOCUMENT_BYTES
from lazyfs.source.base import PIECE_SIZE, Blob, Source, SourceStatistics
from lazyfs.source.line import Line

T = TypeVar("T")


class StoredBlobs:
    """The blobs of a content store.

    Args:
        directory: where it lies.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def find(self, descriptor: Descriptor) -> Path | None:
        """The file of a blob of this digest and size; None if there is none."""
        try:
            path = self._directory / "blobs" / "sha256" / digest_hex(descriptor.digest)
            return path if path.stat().st_size == descriptor.size else None
        except (OSError, IndexerError):
            return None


class StoredFirst:
    """A `base.Source` that takes blobs, where all of one is wanted, from a content store.

    Args:
        source: has everything.
        store: has some blobs.
    """

    def __init__(self, source: Source, store: StoredBlobs) -> None:
        self._source = source
        self._store = store

    async def resolve(self, *, probe: bool = False, patient: bool = True) -> Descriptor:
        """As Source.resolve says."""
        return await self._source.resolve(probe=probe, patient=patient)

    async def prepare(self, connections: int) -> None:
        """As Source.prepare says."""
        await self._source.prepare(connections)

    async def document(self, descriptor: Descriptor, max_bytes: int = MAX_DOCUMENT_BYTES) -> bytes:
        """As Source.document says."""
        return await self._source.document(descriptor, max_bytes)

    def blob(self, descriptor: Descriptor) -> Blob:
        """As Source.blob says."""
        return _StoredBlob(self._source.blob(descriptor), descriptor, self._store)

    def statistics(self) -> SourceStatistics:
        """As Source.statistics says; the store costs nothing."""
        return self._source.statistics()


class _StoredBlob:
    """A `base.Blob` of which a content store may have all."""

    def __init__(self, blob: Blob, descriptor: Descriptor, store: StoredBlobs) -> None:
        self._blob = blob
        self._descriptor = descriptor
        self._store = store

    @property
    def size(self) -> int:
        return self._blob.size

    @property
    def line(self) -> Line | None:
        return self._blob.line

    async def fetch(self, start: int, end: int, consume: Callable[[memoryview], T]) -> T:
        return await self._blob.fetch(start, end, consume)

    async def stream(self, start: int, end: int, consume: Callable[[memoryview], None]) -> None:
        await self._blob.stream(start, end, consume)

    async def pull(self, consume: Callable[[memoryview], None]) -> None:
        path = self._store.find(self._descriptor)
        if path is None or not await trio.to_thread.run_sync(self._read, path, consume):
            await self._blob.pull(consume)

    def _read(self, path: Path, consume: Callable[[memoryview], None]) -> bool:
        """Give all of a file to `consume`; False, and nothing is given, if it cannot be opened."""
        try:
            file = path.open("rb")
        except OSError:
            return False
        with file:
            left = self.size
            while left:
                trio.from_thread.check_cancelled()
                try:
                    piece = file.read(min(PIECE_SIZE, left))
                except OSError as error:
                    raise FormatError(f"{path}: cannot be read: {error.strerror}") from error
                if not piece:
                    raise FormatError(f"{path}: ends {left} bytes early")
                consume(memoryview(piece))
                left -= len(piece)
        return True
