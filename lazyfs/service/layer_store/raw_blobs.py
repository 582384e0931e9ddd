"""Blobs as their registries have them, for who reads them as files: brought whole, and checked as a whole.

A reader gets what has come so far, and the end only once all of it has matched its digest: whoever reads a
blob to its end has the right one, or an error. So a reader never goes on in another copy than it began in.
"""

import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Final

import trio

from indexer.errors import DigestMismatch, IndexerError
from lazyfs.cache.files import write_all
from lazyfs.errors import CacheError, LazyfsError, Unreachable
from lazyfs.image.tasks import background_tasks
from lazyfs.oci.chain import ChainOrder
from lazyfs.oci.descriptor import Descriptor
from lazyfs.service.images import Images
from lazyfs.service.pool import Pool
from lazyfs.source.base import Blob

_IDLE_S: Final = 30.0


class _Copy:
    """A blob that comes into a file of ours.

    Args:
        descriptor_fd: the file.
        link: to the blob.
    """

    def __init__(self, descriptor_fd: int, link: Descriptor) -> None:
        self._fd = descriptor_fd
        self._link = link
        self._hash = sha256()
        self._come = 0
        self._error: Exception | None = None
        self._over = False
        self._changed = trio.lowlevel.ParkingLot()
        self._token = trio.lowlevel.current_trio_token()

    async def bring(self, blob: Blob) -> None:
        """Have all of it come; what goes wrong, readers are told."""
        try:
            await blob.pull(self._take)
            actual = f"sha256:{self._hash.hexdigest()}"
            if actual != self._link.digest:
                raise DigestMismatch("blob", self._link.digest, actual)
        except OSError as error:
            self._error = CacheError(f"cannot keep a blob: {error.strerror}")
        except (IndexerError, LazyfsError) as error:
            self._error = error
        self._over = True
        self._changed.unpark_all()

    def _take(self, data: memoryview) -> None:
        """The next piece, in a worker thread."""
        write_all(self._fd, data, self._come)
        self._hash.update(data)
        self._come += len(data)
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._changed.unpark_all)

    async def read(self, start: int, size: int) -> bytes:
        """Bytes [start, start + size), once they have come.

        Raises:
            IndexerError: the blob is another one.
            LazyfsError: it cannot be had.
        """
        end = start + size
        while not self._over and (self._come < end or end == self._link.size):
            await self._changed.park()
        if self._error is not None:
            raise self._error
        return await trio.to_thread.run_sync(os.pread, self._fd, size, start)


class RawBlobs:
    """Blobs that somebody reads.

    Args:
        nursery: where they live, for as long as somebody reads, and a while longer.
        images: where they are from.
        directory: where they are kept meanwhile, in files without a name.
    """

    def __init__(self, nursery: trio.Nursery, images: Images, directory: Path) -> None:
        self._nursery = nursery
        self._images = images
        self._directory = directory
        self._copies: Pool[str, _Copy] = Pool(nursery, _IDLE_S)

    def __repr__(self) -> str:
        return f"<RawBlobs {self._copies!r}>"

    def open(self, order: ChainOrder, link: Descriptor) -> "BlobReader":
        """Somebody who begins to read a blob of the ordered image."""
        return BlobReader(self._nursery, self, order, link)

    def lease(self, order: ChainOrder, link: Descriptor) -> AbstractAsyncContextManager[_Copy]:
        """A copy.

        Raises:
            IndexerError: (on entry) something of the image is damaged.
            LazyfsError: (on entry) it cannot be had, or kept.
        """
        return self._copies.lease(link.digest, partial(self._coming, order, link))

    def give_up(self, link: Descriptor, copy: _Copy) -> None:
        """A copy that failed: whoever opens the blob next has another one."""
        if copy in self._copies.open_values():
            self._copies.renew(link.digest)

    @asynccontextmanager
    async def _coming(self, order: ChainOrder, link: Descriptor) -> AsyncIterator[_Copy]:
        async with self._images.lease(order) as image:
            try:
                file = os.open(self._directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise CacheError(f"cannot keep a blob in {self._directory}: {error.strerror}") from error
            try:
                async with background_tasks() as tasks:
                    copy = _Copy(file, link)
                    tasks.start_soon(copy.bring, image.workshop.source.blob(link))
                    yield copy
            finally:
                os.close(file)


class BlobReader:
    """One who reads a blob, all of it from one copy.

    Args:
        nursery: where it holds the copy.
        blobs: has copies.
        order: for the image.
        link: to the blob.
    """

    def __init__(self, nursery: trio.Nursery, blobs: RawBlobs, order: ChainOrder, link: Descriptor) -> None:
        self._nursery = nursery
        self._blobs = blobs
        self._order = order
        self._link = link
        self._begun = False
        self._ready = trio.Event()
        self._copy: _Copy | None = None
        self._error: Exception = Unreachable("shutting down")
        self._closed = trio.Event()

    async def read(self, start: int, size: int) -> bytes:
        """Bytes [start, start + size) of the blob, which has them.

        Raises:
            IndexerError: it is another one than its digest promises.
            LazyfsError: it cannot be had, or kept.
        """
        if not self._begun:
            self._begun = True
            self._nursery.start_soon(self._hold)
        await self._ready.wait()
        if self._copy is None:
            raise self._error
        try:
            return await self._copy.read(start, size)
        except (IndexerError, LazyfsError):
            self._blobs.give_up(self._link, self._copy)
            raise

    async def _hold(self) -> None:
        try:
            async with self._blobs.lease(self._order, self._link) as self._copy:
                self._ready.set()
                await self._closed.wait()
        except (IndexerError, LazyfsError) as error:
            self._error = error
        finally:
            self._ready.set()

    def close(self) -> None:
        """Nothing is read any more."""
        self._closed.set()
