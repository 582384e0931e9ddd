"""The Python API: open an image and read it like a directory, without a mount. The commands use it too.

    from lazyfs import api

    with api.open_image("python:3.12-slim") as image:
        image.listdir("/etc")
        image.read_bytes("/etc/os-release")

    async with api.open_async("python:3.12-slim") as image:  # under trio
        await image.read_bytes("/etc/os-release")

An image without an index is pulled once for one; from then on only what is read is fetched. Nothing here
prints; what goes wrong is raised as `lazyfs.errors.LazyfsError` or `indexer.errors.IndexerError`.
"""

import io
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path as LocalPath
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Final, Self

import trio
from msgspec.structs import fields

from lazyfs.assembly import open_workshop, opened
from lazyfs.config import Config, load_config
from lazyfs.errors import ConfigError
from lazyfs.image.image import Image as OpenImage
from lazyfs.image.indexes.indexing import Progress, no_progress
from lazyfs.image.inside.browse import Entry
from lazyfs.image.inside.difference import CompareOptions, Difference
from lazyfs.image.inside.difference import difference as compare
from lazyfs.image.inside.extract import CopyOptions, Extractor
from lazyfs.image.inside.flatten import flatten
from lazyfs.image.inside.layer_report import LayerReport, report_layers
from lazyfs.image.inside.view import ImageView, Path
from lazyfs.oci.image_name import parse_image
from lazyfs.portal import Portal

if TYPE_CHECKING:
    from lazyfs.image.inside.packages.find import Inventory

_PIECE: Final = 1 << 20
_BUFFER: Final = 256 << 10


class AsyncImage(ImageView):
    """An open image for trio. Look-ups answer at once; what may wait for the network is awaited."""

    async def read(self, entry: Entry, offset: int = 0, size: int | None = None) -> bytes:
        """Bytes [offset, offset + size) of a regular file's content, fewer at its end; or all from `offset`.

        Raises:
            IndexerError: what came is damaged.
            LazyfsError: it did not come.
        """
        rest = max(entry.inode.size - offset, 0)
        return await self.image.read(entry.inode.nid, offset, rest if size is None else min(size, rest))

    async def read_bytes(self, path: Path, offset: int = 0, size: int | None = None) -> bytes:
        """As `read`, of the file at a path.

        Raises:
            NotFound: there is nothing at the path.
            WrongKind: it is no regular file.
            IndexerError, LazyfsError: as for `read`.
        """
        return await self.read(self.file(path), offset, size)

    def pieces(self, path: Path) -> AsyncIterator[bytes]:
        """A file's content in order, in pieces of at most 1 MiB; errors as for `read_bytes`."""
        return self.image.pieces(self.file(path).inode.nid)

    async def copy(
        self, path: Path, target: LocalPath, *, recursive: bool = False, archive: bool = False
    ) -> None:
        """Copy what is at a path to `target`, or into it if that is a directory.

        `lazyfs.image.inside.extract` says how.

        Raises:
            NotFound: there is nothing at the path.
            WrongKind: it is a directory, and `recursive` is not said.
            IndexerError, LazyfsError: as for `read`.
            OSError: the target refuses.
        """
        into = target.is_dir()  # noqa: ASYNC240  # one look before anything is begun
        entry = self.entry(path)
        name = entry.name or b"rootfs" if into else os.fsencode(target.name)
        directory = os.open(target if into else target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            options = CopyOptions(recursive=recursive or archive, archive=archive)
            await Extractor(self.image, options).copy(entry, directory, name)
        finally:
            os.close(directory)

    async def export(self, take: Callable[[bytes], Awaitable[None]]) -> None:
        """Give the whole tree as one tar to `take`, piece by piece; see `lazyfs.image.inside.flatten`.

        Raises:
            IndexerError: content is damaged.
            LazyfsError: content cannot be had.
        """
        await flatten(self.image, take)

    async def difference(
        self, other: "AsyncImage", path: Path = "/", *, times: bool = False, quick: bool = False
    ) -> Difference:
        """What `other`, the newer one, has otherwise; see `lazyfs.image.inside.difference`.

        Raises:
            NotFound: neither image has the path.
            IndexerError: content is damaged.
            LazyfsError: content cannot be had.
        """
        options = CompareOptions(times=times, quick=quick)
        return await compare(self.image, other.image, os.fsencode(path), options)

    async def layers(self) -> LayerReport:
        """What each layer adds, changes, hides and wastes. Fetches nothing.

        Raises:
            IndexerError: a table of contents is damaged.
        """
        return await trio.to_thread.run_sync(_report, self.image)

    async def packages(self) -> "Inventory":
        """What software the image says it holds; see `lazyfs.image.inside.packages.find`.

        Raises:
            IndexerError: content is damaged.
            LazyfsError: content cannot be had.
        """
        from lazyfs.image.inside.packages.find import find_packages  # noqa: PLC0415  # its libraries are slow to load

        return await find_packages(self.image)


def _report(image: OpenImage) -> LayerReport:
    return report_layers(index.head.members() for index in image.indexed)


@asynccontextmanager
async def open_async(
    name: str, *, config: Config | None = None, progress: Progress = no_progress, **settings: Any
) -> AsyncIterator[AsyncImage]:
    """An image, open for trio.

    Args:
        name: as on the command line: a reference, oci:DIR[:TAG], oci-archive:FILE or docker-archive:FILE.
        config: the whole configuration; by default that of the command line's user.
        progress: told of layers that are pulled to be indexed; from any thread.
        settings: fields of `lazyfs.config.Config` to change, such as cache_dir, platform or offline.

    Raises:
        BadReference: the name is none.
        ConfigError: a setting is wrong.
        IndexerError: something of the image is damaged.
        LazyfsError: something of it cannot be had, or the cache cannot be used.
    """
    config = settled(config, settings)
    async with open_workshop(parse_image(name), config, progress) as workshop, opened(workshop) as image:
        yield AsyncImage(image)


def settled(config: Config | None, settings: dict[str, Any]) -> Config:
    """The given configuration, or the user's with these settings changed.

    Raises:
        ConfigError: there is no such setting, or its value is wrong.
        TypeError: both are given.
    """
    unknown = settings.keys() - {field.name for field in fields(Config)}
    if unknown:
        raise ConfigError(f"unknown settings: {', '.join(sorted(unknown))}")
    if config is not None and settings:
        raise TypeError(f"give config, or {', '.join(settings)}, not both")
    return config if config is not None else load_config(os.environ, settings)


def open_image(
    name: str, *, config: Config | None = None, progress: Progress = no_progress, **settings: Any
) -> "Image":
    """An image, open for callers that block; arguments and errors as for `open_async`.

    Use it as a context manager, or close it. Any threads may read at once.
    """
    return Image(open_async(name, config=config, progress=progress, **settings))


def difference(
    old: str, new: str, path: Path = "/", *, times: bool = False, quick: bool = False, **settings: Any
) -> Difference:
    """What differs between two images; blocks. Settings and errors as for `open_async` and `difference`."""

    async def run() -> Difference:
        async with open_async(old, **settings) as one, open_async(new, **settings) as other:
            return await one.difference(other, path, times=times, quick=quick)

    return trio.run(run)


class Image(ImageView):
    """An open image for callers that block; made by `open_image`. After `close` nothing can be read."""

    def __init__(self, context: AbstractAsyncContextManager[AsyncImage]) -> None:
        self._portal = Portal(context)
        super().__init__(self._portal.value.image)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop fetching, and keep what was fetched; more calls do nothing."""
        self._portal.close()

    def read_bytes(self, path: Path, offset: int = 0, size: int | None = None) -> bytes:
        """As `AsyncImage.read_bytes`; ValueError once the image is closed, here and below."""
        return self._portal.call(self._portal.value.read_bytes, path, offset, size)

    def read_text(self, path: Path, encoding: str = "utf-8", errors: str = "strict") -> str:
        """As `read_bytes`, decoded."""
        return self.read_bytes(path).decode(encoding, errors)

    def open(
        self,
        path: Path,
        mode: str = "rb",
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:
        """A regular file as a file object, seekable; text in mode "r", with the arguments of `open`.

        Raises:
            NotFound: there is nothing at the path.
            WrongKind: it is no regular file.
            ValueError: another mode, or the image is closed.
        """
        if mode not in ("r", "rt", "rb"):
            raise ValueError(f"an image is read-only: mode {mode!r} cannot be had")
        entry = self.file(path)
        raw = io.BufferedReader(_RawFile(partial(self._read, entry), entry), _BUFFER)
        return raw if mode == "rb" else io.TextIOWrapper(raw, encoding or "utf-8", errors, newline)

    def _read(self, entry: Entry, offset: int, size: int) -> bytes:
        return self._portal.call(self._portal.value.read, entry, offset, size)

    def copy(
        self, path: Path, target: str | LocalPath, *, recursive: bool = False, archive: bool = False
    ) -> None:
        """As `AsyncImage.copy`."""
        copy = partial(self._portal.value.copy, recursive=recursive, archive=archive)
        self._portal.call(copy, path, LocalPath(target))

    def export(self, out: IO[bytes]) -> None:
        """Write the whole tree as one tar; errors as for `AsyncImage.export`, and those of `out`."""

        async def take(piece: bytes) -> None:
            await trio.to_thread.run_sync(out.write, piece)

        self._portal.call(self._portal.value.export, take)

    def layers(self) -> LayerReport:
        """As `AsyncImage.layers`."""
        return _report(self.image)

    def packages(self) -> "Inventory":
        """As `AsyncImage.packages`."""
        return self._portal.call(self._portal.value.packages)


class _RawFile(io.RawIOBase):
    """A regular file of an image, unbuffered."""

    def __init__(self, read: Callable[[int, int], bytes], entry: Entry) -> None:
        self._read_at = read
        self._size = entry.inode.size
        self._position = 0
        self.name = "/" + os.fsdecode(entry.path)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        starts = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}
        if whence not in starts:
            raise ValueError(f"whence is 0, 1 or 2, not {whence}")
        if starts[whence] + offset < 0:
            raise ValueError(f"a position before the start: {starts[whence] + offset}")
        self._position = starts[whence] + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = self._read_at(self._position, len(view))
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def readall(self) -> bytes:
        return b"".join(self._rest())

    def _rest(self) -> Iterator[bytes]:
        while data := self._read_at(self._position, _PIECE):
            self._position += len(data)
            yield data
