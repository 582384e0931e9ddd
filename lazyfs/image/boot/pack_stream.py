"""A boot pack on its way into the cache, while the container that it is for is already starting.

The stream begins before the layers are open; what comes early is held. From then on each chunk is
decompressed, every leaf of it compared with the layer's own table of contents, written and marked. Whoever
wants a leaf that is still to come asks whether to wait for it.
"""

import logging
import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, NamedTuple

import trio
from msgspec import Struct

from indexer.boot_pack import HEADER_SIZE, Chunk, PackHead, PackLayer, decode_pack_head, head_size
from indexer.boot_pack_leaves import PackReader
from indexer.digest import leaf_count
from indexer.errors import IndexerError
from indexer.toc import SpanTable
from lazyfs.cache.layer_entry import LayerEntry
from lazyfs.errors import LazyfsError, NotFound
from lazyfs.image.boot.ordered_ranges import Take, pour
from lazyfs.image.boot.pace import Pace
from lazyfs.image.reading.traffic import Purpose, Ticket, Traffic, TrafficCount
from lazyfs.image.tasks import open_tasks
from lazyfs.source.base import Blob

MOST_HELD: Final = 16 << 20
"""Bytes that are held while the layers are not open yet."""

_WORTH: Final = 20  # one leaf of so many must be missing, else the stream is not worth its bytes
_LOOK_AGAIN_S: Final = 0.05

_log = logging.getLogger(__name__)


class PackStatistics(Struct, frozen=True):
    """What a boot pack has brought.

    Attributes:
        state: "looked for", "coming", "done", "not used" or "failed".
        why: more of it, in words.
        size: bytes of the pack.
        received: bytes of it that came.
        leaves: leaves it holds.
        written: leaves that it brought into the cache.
        rejected: leaves that were not what the layers' tables promise.
        waited: reads that waited for it.
    """

    state: str
    why: str = ""
    size: int = 0
    received: int = 0
    leaves: int = 0
    written: int = 0
    rejected: int = 0
    waited: int = 0


class OpenLayer(NamedTuple):
    """Where the leaves of a layer go.

    Attributes:
        spans: its table.
        entry: its place in the cache.
    """

    spans: SpanTable
    entry: LayerEntry


class PackStream:
    """One pack's way into the cache. Of the pack itself nothing is kept once that has ended.

    Args:
        size: bytes of the pack.
        traffic: where its requests take turns.
        head: its head, where it is here already.
        keep_head: given its head, once that has come.
    """

    def __init__(
        self,
        size: int,
        traffic: Traffic,
        head: PackHead | None = None,
        keep_head: Callable[[bytes], None] | None = None,
    ) -> None:
        self._traffic = traffic
        self._size = size
        self._head = head
        self._keep_head = keep_head
        self._held = bytearray()
        self._at = head.size if head else 0  # offset in the pack of the first byte held
        self._layers: Mapping[PackLayer, OpenLayer] | None = None
        self._attached = trio.Event()
        self._told = trio.Event()
        self._all_here = False
        self._held_more = trio.Event()
        self._room = trio.Event()  # replaced each time some of what is held was taken
        self._moved = trio.Event()  # replaced each time a chunk was unpacked
        self._places: dict[PackLayer, _Places] = {}
        self._chunks_done = 0
        self._ended = False
        self._reader: PackReader | None = None
        self._leaves = self._rejected = 0
        self._pace = Pace(trio.current_time())
        self._asked = TrafficCount()
        self._received = self._written = self._waited = 0
        self._state, self._why = "coming", ""

    def __repr__(self) -> str:
        return f"<PackStream {self._state}, {self._received} of {self._size} bytes>"

    @property
    def asked(self) -> TrafficCount:
        """What was asked of others for it so far."""
        return self._asked

    def statistics(self) -> PackStatistics:
        """What it has brought so far."""
        return PackStatistics(
            state=self._state,
            why=self._why,
            size=self._size,
            received=self._received,
            leaves=self._leaves,
            written=self._written,
            rejected=self._reader.rejected if self._reader else self._rejected,
            waited=self._waited,
        )

    def attach(self, layers: Mapping[PackLayer, OpenLayer]) -> None:
        """The image's layers are open."""
        self._layers = layers
        self._attached.set()

    async def run(self, blob: Blob) -> None:
        """Stream the pack, as far as it is of use. What goes wrong is logged: readers can do without it."""
        try:
            await self._run(blob)
        except (IndexerError, LazyfsError) as error:
            self._state, self._why = "failed", str(error)
            _log.warning("the boot pack is not used any further: %s", error)
        finally:
            self._ended = True
            self._told.set()
            self._move()
            self._let_go()

    def _let_go(self) -> None:
        """Keep what may still be asked: the mount may last for months."""
        self._rejected = self.statistics().rejected
        self._held.clear()
        self._reader = self._head = None

    async def _run(self, blob: Blob) -> None:
        if self._head is not None:
            self._place(self._head)
            await self._attached.wait()
            if not self._is_worth_it(self._head):
                return
        async with open_tasks() as nursery:
            nursery.start_soon(self._unpack_all)
            stream, fetch = partial(self._stream, blob), partial(self._fetch, blob)
            await pour(stream, fetch, self._at, self._size, self._take)
            self._all_here = True
            self._held_more.set()
        if self._state == "coming":
            self._state = "done"
        told = self.statistics()
        if told.rejected:
            _log.warning("%d of %d leaves of the boot pack were wrong", told.rejected, told.leaves)

    def _is_worth_it(self, head: PackHead) -> bool:
        """Whether enough of the pack is missing here; of one that was streamed before, nothing usually is."""
        layers = self._open_layers(head)
        missing = 0
        for run in head.runs:
            missing += sum(end - first for first, end in layers[run.layer].entry.missing(*run[1:]))
        if missing * _WORTH > head.leaves:
            return True
        self._state, self._why = "done", "its content is here already"
        return False

    def _open_layers(self, head: PackHead) -> list[OpenLayer]:
        """The layers of the pack, which must all be the image's, read by the same tables.

        Raises:
            NotFound: they are not.
            IndexerError: the pack has leaves that they do not have.
        """
        layers = self._layers or {}
        missing = [layer for layer in head.layers if layer not in layers]
        if missing:
            raise NotFound(f"it was made for another index of layer {missing[0].layer_digest}")
        found = [layers[layer] for layer in head.layers]
        if self._reader is None:
            self._reader = PackReader(head, [layer.spans for layer in found])
        return found

    # Bytes

    async def _fetch(self, blob: Blob, start: int, end: int) -> bytes:
        ticket = Ticket(Purpose.PACK)
        async with self._traffic.turn(ticket):
            await self._traffic.pay(ticket, end - start)
            self._count(end - start)
            data = await blob.fetch(start, end, bytes)
        self._arrived(len(data))
        return data

    async def _stream(self, blob: Blob, start: int, end: int, take: Take) -> None:
        token = trio.lowlevel.current_trio_token()
        pieces, coming = trio.open_memory_channel[bytes](math.inf)  # of no more than the range

        def arrived(piece: bytes) -> None:
            with suppress(trio.ClosedResourceError, trio.BrokenResourceError):  # it was given up
                pieces.send_nowait(piece)
                self._arrived(len(piece))

        async def bring() -> None:
            ticket = Ticket(Purpose.PACK)
            async with self._traffic.turn(ticket), pieces:
                await self._traffic.pay(ticket, end - start)
                self._count(end - start)
                await blob.stream(start, end, lambda piece: token.run_sync_soon(arrived, bytes(piece)))

        async with open_tasks() as nursery, coming:
            nursery.start_soon(bring)
            async for piece in coming:
                await take(piece)

    def _count(self, size: int) -> None:
        self._traffic.count(Purpose.PACK, size)
        self._asked = TrafficCount(self._asked.requests + 1, self._asked.bytes + size)

    def _arrived(self, size: int) -> None:
        self._received += size
        self._pace.arrived(size, trio.current_time())

    async def _take(self, data: bytes) -> None:
        self._held += data
        if self._head is None:
            await self._read_head()
        self._held_more.set()
        while self._head is not None and len(self._held) > MOST_HELD:  # a head is bounded by itself
            await self._room.wait()

    async def _unpack_all(self) -> None:
        """Take chunks from what is held, as soon as the layers are open."""
        await self._attached.wait()
        while True:
            self._held_more = trio.Event()
            all_here = self._all_here
            if self._head is not None:
                await self._take_chunks(self._head)
                if self._chunks_done == len(self._head.chunks):
                    return
            if all_here:
                raise NotFound("the boot pack ends too early")
            await self._held_more.wait()

    async def _read_head(self) -> None:
        """Read the head, if all of it has come."""
        if len(self._held) < HEADER_SIZE:
            return
        size = head_size(bytes(self._held[:HEADER_SIZE]))
        if len(self._held) < size:
            return
        raw = bytes(self._held[:size])
        head = await trio.to_thread.run_sync(decode_pack_head, raw)
        if head.pack_size != self._size:
            raise NotFound(f"a boot pack of {self._size} bytes that says {head.pack_size}")
        del self._held[:size]
        self._at = size
        self._head = head
        self._place(head)
        if self._keep_head is not None:
            await trio.to_thread.run_sync(self._keep_head, raw)

    async def _take_chunks(self, head: PackHead) -> None:
        layers = self._open_layers(head)
        end = self._chunks_done
        while end < len(head.chunks) and head.chunks[end].end <= self._at + len(self._held):
            end += 1
        chunks = head.chunks[self._chunks_done : end]
        if not chunks:
            return
        size = chunks[-1].end - self._at
        frames = bytes(self._held[:size])
        del self._held[:size]
        start, self._at = self._at, self._at + size
        self._room.set()
        self._room = trio.Event()
        for chunk in chunks:
            frame = memoryview(frames)[chunk.start - start : chunk.end - start]
            self._written += await trio.to_thread.run_sync(self._unpack, layers, chunk, frame)
            self._chunks_done += 1
            self._move()

    def _unpack(self, layers: Sequence[OpenLayer], chunk: Chunk, frame: memoryview) -> int:
        """In a worker thread: prove, write and mark the leaves of a chunk; how many were written."""
        reader, head = self._reader, self._head
        assert reader is not None, "made with the layers"
        assert head is not None, "chunks come after the head"
        try:
            proved = reader.read(chunk, frame)
        except IndexerError as error:  # the next ones may be whole
            _log.info("a chunk of the boot pack: %s", error)
            runs = head.runs[chunk.first_run : chunk.end_run]
            reader.rejected += sum(run.end_leaf - run.first_leaf for run in runs)
            return 0
        written = 0
        for leaves in proved:
            entry = layers[leaves.layer].entry
            end_leaf = leaves.first_leaf + leaf_count(len(leaves.data))
            if not entry.has(leaves.first_leaf, end_leaf) and entry.put(
                leaves.start, leaves.first_leaf, leaves.data
            ):
                written += end_leaf - leaves.first_leaf
        return written

    def _move(self) -> None:
        self._moved.set()
        self._moved = trio.Event()

    # Readers

    def _place(self, head: PackHead) -> None:
        """Where the leaves of each layer come."""
        self._leaves = head.leaves
        runs: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
        for number, chunk in enumerate(head.chunks):
            for run in head.runs[chunk.first_run : chunk.end_run]:
                runs[run.layer].append((run.first_leaf, run.end_leaf, number))
        self._places = {head.layers[layer]: _Places(found) for layer, found in runs.items()}
        self._told.set()

    async def wait_told(self) -> None:
        """Wait until it is known what the pack holds."""
        await self._told.wait()

    def promised(self, layer: PackLayer, missing: Sequence[tuple[int, int]]) -> int | None:
        """The chunk with which all these leaves will have come; None if some of them will not come."""
        places = self._places.get(layer)
        if self._ended or places is None:
            return None
        chunks = [places.last_chunk(first, end) for first, end in missing]
        if any(chunk is None or chunk < self._chunks_done for chunk in chunks):
            return None
        return max((chunk for chunk in chunks if chunk is not None), default=None)

    def touches(self, layer: PackLayer, first_leaf: int, end_leaf: int, *, ever: bool) -> bool:
        """Whether some of these leaves are still to come; with `ever`, or came with a pack that was right."""
        if self._ended and not (ever and self.was_right):
            return False
        places = self._places.get(layer)
        return places is not None and places.touches(first_leaf, end_leaf)

    @property
    def was_right(self) -> bool:
        """Whether it ended well, and all leaves that came were right."""
        return self._state == "done" and not self.statistics().rejected

    async def wait(self, chunk: int, apart: int) -> None:
        """Wait for a chunk for as long as that is no slower than fetching what is wanted apart.

        Args:
            chunk: its number.
            apart: bytes that a request of its own would bring.
        """
        self._waited += 1
        while not self._ended and chunk >= self._chunks_done:
            assert self._head is not None, "a chunk was promised"
            to_come = self._head.chunks[chunk].end - self._received
            if not self._pace.is_worth_waiting(max(to_come, 0), apart, trio.current_time()):
                return
            with trio.move_on_after(_LOOK_AGAIN_S):
                await self._moved.wait()


class _Places:
    """The leaves of one layer, and in which chunk they come.

    Args:
        runs: (first leaf, end leaf, chunk), no leaf twice.
    """

    def __init__(self, runs: Sequence[tuple[int, int, int]]) -> None:
        self._runs = sorted(runs)
        self._firsts = [first for first, _, _ in self._runs]

    def last_chunk(self, first_leaf: int, end_leaf: int) -> int | None:
        """The last chunk that leaves [first_leaf, end_leaf) come with; None if some do not come."""
        at = bisect_right(self._firsts, first_leaf) - 1
        last: int | None = None
        while first_leaf < end_leaf:
            if not 0 <= at < len(self._runs):
                return None
            first, end, chunk = self._runs[at]
            if not first <= first_leaf < end:
                return None
            last = chunk if last is None else max(last, chunk)
            first_leaf = end
            at += 1
        return last

    def touches(self, first_leaf: int, end_leaf: int) -> bool:
        """Whether any of these leaves come."""
        at = bisect_right(self._firsts, end_leaf - 1) - 1
        return at >= 0 and self._runs[at][1] > first_leaf
