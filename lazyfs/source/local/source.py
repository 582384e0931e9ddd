"""Images in local files: what layouts and archives share once a digest leads to a range of a file."""

import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager
from typing import Final, NamedTuple, Protocol, TypeVar

import trio

from indexer.errors import FormatError, LimitExceeded
from lazyfs.errors import NotFound, RangeRefused
from lazyfs.oci.descriptor import Descriptor, readable_digest
from lazyfs.oci.json_fields import MAX_DOCUMENT_BYTES
from lazyfs.oci.manifest import Index
from lazyfs.source.base import PIECE_SIZE, SourceStatistics
from lazyfs.source.checks import check_document

T = TypeVar("T")

REF_NAME: Final = "org.opencontainers.image.ref.name"
_CONTAINERD_NAME: Final = "io.containerd.image.name"


class FileRange(NamedTuple):
    """Some bytes of an open file.

    Attributes:
        descriptor: of the file; whoever made this closes it.
        start: first byte.
        size: how many.
    """

    descriptor: int
    start: int
    size: int


class LocalContent(Protocol):
    """Finds content by digest. Called in worker threads."""

    def find(self, digest: str) -> FileRange | bytes:
        """Where the content of a sha256 digest lies, or the content itself.

        Raises:
            NotFound: there is none.
            FormatError: what is there is no regular file.
        """


class LocalBlob:
    """A `base.Blob` in a file.

    Args:
        content: finds it.
        digest: which.
        size: bytes, by the descriptor.
    """

    def __init__(self, content: LocalContent, digest: str, size: int) -> None:
        self._content = content
        self._digest = digest
        self._size = size

    @property
    def size(self) -> int:
        """Bytes of the blob, by its descriptor."""
        return self._size

    @property
    def line(self) -> None:
        """There is none."""

    async def fetch(self, start: int, end: int, consume: Callable[[memoryview], T]) -> T:
        """As Blob.fetch says."""
        self._check(start, end)
        return await trio.to_thread.run_sync(lambda: consume(self._read(self._find(), start, end)))

    async def stream(self, start: int, end: int, consume: Callable[[memoryview], None]) -> None:
        """As Blob.stream says."""
        self._check(start, end)

        def work() -> None:
            found = self._find()
            for at in range(start, end, PIECE_SIZE):
                trio.from_thread.check_cancelled()
                consume(self._read(found, at, min(at + PIECE_SIZE, end)))

        await trio.to_thread.run_sync(work)

    async def pull(self, consume: Callable[[memoryview], None]) -> None:
        """As Blob.pull says."""
        await self.stream(0, self._size, consume)

    def _check(self, start: int, end: int) -> None:
        if not 0 <= start <= end <= self._size:
            raise RangeRefused(f"blob {self._digest}: bytes {start}-{end} are outside its {self._size}")

    def _find(self) -> FileRange | bytes:
        found = self._content.find(self._digest)
        size = len(found) if isinstance(found, bytes) else found.size
        if size != self._size:
            raise FormatError(f"blob {self._digest}: {size} bytes, its descriptor says {self._size}")
        return found

    def _read(self, found: FileRange | bytes, start: int, end: int) -> memoryview:
        if isinstance(found, bytes):
            return memoryview(found)[start:end]
        return memoryview(read_range(found, start, end, f"blob {self._digest}"))


def read_range(found: FileRange, start: int, end: int, what: str) -> bytearray:
    """Bytes [start, end) of a range of a file.

    Raises:
        FormatError: the file ends before, or cannot be read.
    """
    data = bytearray(end - start)
    view, position = memoryview(data), found.start + start
    while view:
        try:
            count = os.preadv(found.descriptor, [view], position)
        except OSError as error:
            raise FormatError(f"{what}: cannot be read: {error.strerror}") from error
        if not count:
            raise FormatError(f"{what}: the file ends {len(view)} bytes early")
        view, position = view[count:], position + count
    return data


class LocalSource:
    """A `base.Source` over local content.

    Args:
        root: the manifest or index that the image's name stands for.
        content: finds everything below it.
    """

    def __init__(self, root: Descriptor, content: LocalContent) -> None:
        self._root = root
        self._content = content

    async def prepare(self, connections: int) -> None:
        """There are none."""

    async def resolve(
        self,
        *,
        probe: bool = False,  # noqa: ARG002  # nothing is asked twice here
        patient: bool = True,  # noqa: ARG002  # nor waited for
    ) -> Descriptor:
        """As Source.resolve says."""
        return self._root

    async def document(self, descriptor: Descriptor, max_bytes: int = MAX_DOCUMENT_BYTES) -> bytes:
        """As Source.document says."""
        if descriptor.size > max_bytes:
            raise LimitExceeded(f"document {descriptor.digest}: more than {max_bytes} bytes")
        return check_document(await self.blob(descriptor).fetch(0, descriptor.size, bytes), descriptor)

    def blob(self, descriptor: Descriptor) -> LocalBlob:
        """As Source.blob says."""
        return LocalBlob(self._content, readable_digest(descriptor.digest), descriptor.size)

    def statistics(self) -> SourceStatistics:
        """Nothing is asked of anyone."""
        return SourceStatistics()


@asynccontextmanager
async def opened_in_thread(begin: Callable[[ExitStack], LocalSource]) -> AsyncIterator[LocalSource]:
    """What `begin` opens in a worker thread; what it puts on the stack is closed in the end."""
    with ExitStack() as stack:
        yield await trio.to_thread.run_sync(begin, stack)


def select_tagged(index: Index, tag: str, where: str) -> Descriptor:
    """The entry of a layout's index that a tag names; without a tag, the only one.

    A tag is the annotation `org.opencontainers.image.ref.name` (image-spec `image-layout.md`), or the whole
    name that containerd's exports add. What is attached to images stands in the index too, and is none.

    Raises:
        NotFound: none or several fit; the message lists the tags there are.
    """
    fitting = [
        entry
        for entry in index.manifests
        if (tag in _names(entry.annotations) if tag else not entry.artifact_type)
    ]
    if len({entry.digest for entry in fitting}) == 1:
        return fitting[0]
    tags = sorted({name for entry in index.manifests for name in _names(entry.annotations)[:1]})
    there = f"it has {', '.join(tags)[:500]}" if tags else "its images have no tags"
    if not fitting:
        raise NotFound(
            f"{where}: no image {tag!r}; {there}" if tag else f"{where}: holds no image", url=where
        )
    how = f"several images are called {tag!r}" if tag else "name one of its images"
    raise NotFound(f"{where}: {how}; {there}", url=where)


def _names(annotations: Mapping[str, str]) -> list[str]:
    return [annotations[key] for key in (REF_NAME, _CONTAINERD_NAME) if annotations.get(key)]
