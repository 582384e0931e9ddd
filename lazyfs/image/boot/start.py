"""The start of a mount: its boot pack is looked for, streamed, and waited for by who wants its leaves."""

import logging
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import trio

from indexer.boot_pack import PackLayer
from lazyfs.image.boot.pack_stream import OpenLayer, PackStatistics, PackStream
from lazyfs.image.boot.packs import BootPacks
from lazyfs.image.reading.layer import LazyLayer
from lazyfs.image.reading.traffic import Traffic, TrafficCount
from lazyfs.image.resolve import ResolvedImage
from lazyfs.image.tasks import background_tasks, open_tasks

_LONGEST_LOOK_S: Final = 0.3
"""For how long readers wait until it is known what a pack holds: about what a request of their own takes."""

_log = logging.getLogger(__name__)


class Boot:
    """The start of one mount.

    Args:
        packs: finds the pack.
        resolved: the image.
        traffic: where its requests take turns.
    """

    def __init__(self, packs: BootPacks, resolved: ResolvedImage, traffic: Traffic) -> None:
        self._packs = packs
        self._traffic = traffic
        self._resolved = resolved
        self._layers: Mapping[PackLayer, OpenLayer] | None = None
        self._told = trio.Event()  # or waited for long enough
        self._digest: str | None = None
        self._stream: PackStream | None = None
        self._scope = trio.CancelScope()
        self._over = trio.Event()

    def __repr__(self) -> str:
        return f"<Boot {self._stream!r}>"

    @property
    def is_over(self) -> bool:
        """Whether nothing comes any more."""
        return self._over.is_set()

    def serves(self, layers: Iterable[PackLayer]) -> bool:
        """Whether what comes goes into all of these layers, as far as it is for them."""
        return self._layers is not None and all(names in self._layers for names in layers)

    async def find(self) -> str | None:
        """The digest of the pack, if that is found before long."""
        await self.settle()
        return self._digest

    def statistics(self) -> PackStatistics:
        """What the pack has brought so far."""
        if self._stream is not None:
            return self._stream.statistics()
        return (
            PackStatistics("none", "there is no boot pack") if self.is_over else PackStatistics("looked for")
        )

    @property
    def asked(self) -> TrafficCount:
        """What was asked of others for the pack so far."""
        return self._stream.asked if self._stream is not None else TrafficCount()

    async def run(self, *, ask: bool) -> None:
        """Look for the pack, and stream it.

        Args:
            ask: whether to ask others for one.
        """
        try:
            with self._scope:
                await self._run(ask=ask)
        except Exception as bug:  # noqa: BLE001  # the mount does without
            _log.error("a bug while streaming the boot pack of %s", self._resolved.name, exc_info=bug)
        finally:
            self._told.set()
            self._over.set()

    async def _run(self, *, ask: bool) -> None:
        found = await self._packs.find(self._resolved, ask=ask)
        if found is None:
            return
        self._digest = found.digest
        self._stream = PackStream(found.blob.size, self._traffic, found.head, found.keep_head)
        if self._layers is not None:
            self._stream.attach(self._layers)
        async with open_tasks() as nursery:
            nursery.start_soon(self._stream.run, found.blob)
            await self._stream.wait_told()
            self._told.set()
        if not self._stream.was_right:
            await trio.to_thread.run_sync(self._packs.forget, self._resolved, found)

    async def wait_over(self) -> None:
        """Wait until nothing comes any more."""
        await self._over.wait()

    async def end(self) -> None:
        """Stop what is under way, before the layers are closed. `run` was called."""
        self._scope.cancel()
        with trio.CancelScope(shield=True):
            await self._over.wait()

    def attach(self, layers: Mapping[PackLayer, LazyLayer]) -> None:
        """The image's layers are open: what comes goes into them, and their readers wait for it."""
        opened = {names: OpenLayer(layer.spans, layer.entry) for names, layer in layers.items()}
        self._layers = opened
        if self._stream is not None:
            self._stream.attach(opened)
        for names, layer in layers.items():
            layer.follow(LayerBoot(self, names))

    async def settle(self) -> None:
        """Wait until it is known what comes, but not for long, and not once somebody has waited in vain."""
        if not self._told.is_set():
            with trio.move_on_after(_LONGEST_LOOK_S):
                await self._told.wait()
            self._told.set()

    @property
    def stream(self) -> PackStream | None:
        """The pack on its way, if there is one."""
        return self._stream


def begin(
    nursery: trio.Nursery,
    packs: BootPacks,
    resolved: ResolvedImage,
    traffic: Traffic,
    made_here: Collection[str],
) -> Boot:
    """The start of a mount, to which layers are to be attached; it must have ended before they are closed.

    Others are asked for a pack unless all indexes were made here: who made them has had the content, too.

    Args:
        nursery: where it goes on.
        packs: finds the pack.
        resolved: the image.
        traffic: where its requests take turns.
        made_here: digests of the layers whose indexes were made or audited here.
    """
    boot = Boot(packs, resolved, traffic)
    ask = any(layer.descriptor.digest not in made_here for layer in resolved.layers)
    nursery.start_soon(partial(boot.run, ask=ask))
    return boot


@asynccontextmanager
async def booting(
    packs: BootPacks, resolved: ResolvedImage, traffic: Traffic, made_here: Collection[str]
) -> AsyncIterator[Boot]:
    """As `begin` says; it ends with the block."""
    async with background_tasks() as nursery:
        boot = begin(nursery, packs, resolved, traffic, made_here)
        async with ending(boot):
            yield boot


@asynccontextmanager
async def ending(boot: Boot) -> AsyncIterator[Boot]:
    """A start that ends with the block."""
    try:
        yield boot
    finally:
        await boot.end()


class LayerBoot:
    """What comes of one layer.

    Args:
        boot: the start.
        layer: the layer.
    """

    def __init__(self, boot: Boot, layer: PackLayer) -> None:
        self._boot = boot
        self._layer = layer

    @property
    def is_over(self) -> bool:
        """As Boot.is_over."""
        return self._boot.is_over

    @property
    def is_vain(self) -> bool:
        """Whether nothing comes any more, and nothing has that was right."""
        stream = self._boot.stream
        return self._boot.is_over and (stream is None or not stream.was_right)

    async def settle(self) -> None:
        """As Boot.settle."""
        await self._boot.settle()

    def promised(self, missing: Sequence[tuple[int, int]]) -> int | None:
        """As PackStream.promised."""
        stream = self._boot.stream
        return stream.promised(self._layer, missing) if stream else None

    def touches(self, first_leaf: int, end_leaf: int, *, ever: bool) -> bool:
        """As PackStream.touches."""
        stream = self._boot.stream
        return stream is not None and stream.touches(self._layer, first_leaf, end_leaf, ever=ever)

    async def wait(self, chunk: int, apart: int) -> None:
        """As PackStream.wait, of a chunk that was promised."""
        stream = self._boot.stream
        if stream is not None:
            await stream.wait(chunk, apart)
