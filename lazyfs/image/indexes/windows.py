"""The windows of a published index, fetched as far as spans are entered.

A window is a few KB, needed once: when its span is fetched for the first time. Windows of neighbours lie side
by side, and readers rarely want one span alone. So the file comes in blocks, beside the compressed bytes and
not before them; and once half of them were wanted, a file that is not large comes whole, behind the readers'
backs, is checked and kept.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final, TypeVar

import trio
from msgspec import Struct

from indexer.digest import sha256_digest
from indexer.errors import DigestMismatch, IndexerError, LimitExceeded
from indexer.toc import Span
from lazyfs.errors import LazyfsError, NotFound
from lazyfs.image.tasks import open_tasks
from lazyfs.source.base import Blob

_log = logging.getLogger(__name__)

T = TypeVar("T")

ReadWindow = Callable[[Span], bytes]
"""Gives a span's window as it lies in the windows file."""

BLOCK_SIZE: Final = 64 << 10
WHOLE_SIZE: Final = 2 << 20
"""Bytes of a file up to which all of it is fetched once half of it was wanted."""

_MOST_BLOCKS: Final = 256  # that are held: what spans of one request need is a small part of them


class RemoteWindows(Struct, frozen=True):
    """A window file that is not here.

    Attributes:
        blob: the file at its source.
        digest: its digest, which the table of contents names.
        keep: called in a worker thread with all of it, once it was fetched and checked.
        gone: called in a worker thread when its source does not have it any more; None if nobody cares.
    """

    blob: Blob
    digest: str
    keep: Callable[[bytes], None]
    gone: Callable[[], None] | None = None

    async def fetch_whole(self) -> bytes:
        """All of the file, checked.

        Raises:
            DigestMismatch: what its source has is another file.
            LazyfsError: it does not come.
        """
        data = await self.blob.fetch(0, self.blob.size, bytes)
        actual = await trio.to_thread.run_sync(sha256_digest, data)
        if actual != self.digest:
            raise DigestMismatch("windows of an index", self.digest, actual)
        return data


class WindowFetcher:
    """Fetches windows of one layer.

    Args:
        remote: the file.
        nursery: where the whole file is fetched; nobody waits for it.
    """

    def __init__(self, remote: RemoteWindows, nursery: trio.Nursery) -> None:
        self._remote = remote
        self._nursery = nursery
        self._size = remote.blob.size
        self._whole: bytes | None = None
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._under_way: dict[int, trio.Event] = {}
        self._wanted = 0  # bytes
        self._wants_whole = False
        self._asked = 0

    def __repr__(self) -> str:
        here = "all" if self._whole is not None else f"{len(self._blocks)} blocks"
        return f"<WindowFetcher, {here} of {self._size} bytes after {self._asked} requests>"

    def take(self, spans: Sequence[Span]) -> dict[int, bytes] | None:
        """The windows of spans by number, as they lie in the file; None if one of them is not here."""
        if not all(block in self._blocks for block in self._absent_from_whole(spans)):
            return None
        return {span.number: self._cut(span.window_start, span.window_end) for span in spans}

    async def bring(self, spans: Sequence[Span]) -> dict[int, bytes]:
        """The same, fetched if need be.

        Raises:
            LazyfsError: they cannot be had.
            LimitExceeded: they take more than is held at once.
        """
        blocks = self._absent_from_whole(spans)
        if len(blocks) > _MOST_BLOCKS:
            raise LimitExceeded(f"windows in {len(blocks)} blocks for spans that lie side by side")
        while True:
            windows = self.take(spans)
            if windows is not None:
                return windows
            missing = [b for b in self._absent_from_whole(spans) if b not in self._blocks]
            free = [block for block in missing if block not in self._under_way]
            if free:
                await self._fetch(_first_run(free))
            else:
                await self._under_way[missing[0]].wait()

    async def beside(
        self,
        blob: Blob,
        spans: Sequence[Span],
        start: int,
        end: int,
        unpack: Callable[[ReadWindow, memoryview], T],
    ) -> T:
        """What `unpack` makes, in a worker thread, of bytes [start, end) of a blob and the spans' windows.

        Windows that are not here are fetched at the same time.

        Raises:
            IndexerError: what came does not fit together; the windows are fetched anew next time.
            LazyfsError: it did not come.
        """
        try:
            windows = self.take(spans)
            if windows is not None:
                return await blob.fetch(start, end, partial(unpack, _reader(windows)))
            async with open_tasks() as nursery:
                brought = _Brought()
                nursery.start_soon(brought.bring, self, spans)
                data = await blob.fetch(start, end, bytes)
            return await trio.to_thread.run_sync(unpack, _reader(brought.windows), memoryview(data))
        except IndexerError:
            self._forget(spans)
            raise

    def _forget(self, spans: Sequence[Span]) -> None:
        for block in self._absent_from_whole(spans):
            self._blocks.pop(block, None)

    def _absent_from_whole(self, spans: Sequence[Span]) -> list[int]:
        """The blocks that windows of spans lie in; none where the whole file is here."""
        if self._whole is not None:
            return []
        return sorted({block for span in spans for block in _blocks_of(span)})

    def _cut(self, start: int, end: int) -> bytes:
        if self._whole is not None:
            return self._whole[start:end]
        if start == end:  # of a span that refers to nothing before it; its place need not be here
            return b""
        pieces = []
        for block in range(start // BLOCK_SIZE, -(-end // BLOCK_SIZE)):
            self._blocks.move_to_end(block)
            at = block * BLOCK_SIZE
            pieces.append(self._blocks[block][max(start - at, 0) : end - at])
        return b"".join(pieces)

    async def _fetch(self, run: range) -> None:
        """Fetch neighbouring blocks by one request."""
        done = trio.Event()
        self._under_way.update(dict.fromkeys(run, done))
        try:
            start, end = run.start * BLOCK_SIZE, min(run.stop * BLOCK_SIZE, self._size)
            self._want(end - start)
            self._asked += 1
            data = await self._fetch_range(start, end)
            for block in run:
                at = block * BLOCK_SIZE - start
                self._blocks[block] = data[at : at + BLOCK_SIZE]
            while len(self._blocks) > _MOST_BLOCKS:
                self._blocks.popitem(last=False)
        finally:
            for block in run:
                del self._under_way[block]
            done.set()

    def _want(self, size: int) -> None:
        """Count what is fetched block by block, and have the rest come once that is worth it."""
        again, self._wanted = self._wanted > 0, self._wanted + size
        enough = again and self._wanted >= self._size // 2
        if enough and self._size <= WHOLE_SIZE and not self._wants_whole:
            self._wants_whole = True
            self._nursery.start_soon(self._fetch_whole)

    async def _fetch_range(self, start: int, end: int) -> bytes:
        try:
            return await self._remote.blob.fetch(start, end, bytes)
        except NotFound:
            if self._remote.gone is not None:
                await trio.to_thread.run_sync(self._remote.gone)
            raise

    async def _fetch_whole(self) -> None:
        """Fetch the file, check it, keep it. Without it, blocks go on coming one by one."""
        try:
            self._asked += 1
            self._whole = await self._remote.fetch_whole()
            self._blocks.clear()
            await trio.to_thread.run_sync(self._remote.keep, self._whole)
        except (LazyfsError, IndexerError) as error:
            level = logging.WARNING if isinstance(error, IndexerError) else logging.INFO
            _log.log(level, "windows are fetched one by one: %s", error)


class _Brought:
    """Windows that a task brings."""

    windows: dict[int, bytes]

    async def bring(self, fetcher: WindowFetcher, spans: Sequence[Span]) -> None:
        self.windows = await fetcher.bring(spans)


def _reader(windows: dict[int, bytes]) -> ReadWindow:
    return lambda span: windows[span.number]


def _blocks_of(span: Span) -> Iterable[int]:
    if span.window_start == span.window_end:
        return ()
    return range(span.window_start // BLOCK_SIZE, -(-span.window_end // BLOCK_SIZE))


def _first_run(blocks: Sequence[int]) -> range:
    """The neighbours that begin an ascending sequence."""
    end = blocks[0] + 1
    for block in blocks[1:]:
        if block != end:
            break
        end += 1
    return range(blocks[0], end)
