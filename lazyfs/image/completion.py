"""Brings what is missing of a layer, front to back: when much of it was read, or in the background.

Of layers whose writers put first what a start reads (`indexer.foreign.landmark`), that comes at once.
"""

import logging
from collections import deque
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Final

import trio

from indexer.errors import IndexerError
from indexer.foreign.landmark import prioritised
from indexer.toc_codec import TocHead
from lazyfs.errors import LazyfsError
from lazyfs.image.boot.start import Boot
from lazyfs.image.reading.landing import Landing
from lazyfs.image.reading.layer import LazyLayer
from lazyfs.image.reading.traffic import Purpose
from lazyfs.image.tasks import run_all

_BATCH: Final = 4 << 20  # compressed bytes that are asked for at once
_BATCH_BEHIND: Final = 1 << 20  # the same in the background, where others may come any moment
_BATCHES: Final = 3  # under way at once
_ATTEMPTS: Final = 3
_PAUSE_S: Final = 10.0

_log = logging.getLogger(__name__)


async def complete_when_much_read(layer: LazyLayer) -> None:
    """Once readers have wanted about a third of a layer, bring the rest: they will want that, too."""
    await layer.much_read.wait()
    _log.info("%r: much of it was read, the rest is brought", layer)
    await complete(layer, Purpose.AHEAD)


async def wait_much_read(layers: Iterable[LazyLayer]) -> None:
    """Wait until much of one of these layers was read."""

    async def wait(layer: LazyLayer, nursery: trio.Nursery) -> None:
        await layer.much_read.wait()
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for layer in layers:
            nursery.start_soon(wait, layer, nursery)


async def complete_behind(layers: Iterable[LazyLayer], boot: Boot | None) -> None:
    """Bring what is missing of layers in the background, one after the other, once their start is over."""
    if boot is not None:
        await boot.wait_over()
    for layer in layers:
        await complete(layer, Purpose.BACKGROUND)


async def bring_prioritised(layers: Iterable[tuple[TocHead, LazyLayer]], boot: Boot | None) -> None:
    """Bring what stands before the landmarks of a mount's layers, unless a boot pack comes.

    Args:
        layers: with their tables.
        boot: the mount's start; None where no pack is wanted, and nothing else.
    """

    async def bring(head: TocHead, layer: LazyLayer) -> None:
        first = await trio.to_thread.run_sync(prioritised, head, layer.spans)
        if first:
            await complete(layer, Purpose.PACK, first.stop)

    if boot is None or await boot.find() is not None:
        return
    try:
        await run_all(partial(bring, head, layer) for head, layer in layers)
    except IndexerError as error:  # a damaged table; who reads by it is told
        _log.info("what is wanted first is not known: %s", error)


async def complete(layer: LazyLayer, purpose: Purpose, end: int | None = None) -> None:
    """Bring what is missing of a layer before span `end`, until it is here, or cannot be had or kept."""
    for attempt in range(_ATTEMPTS):
        if attempt:
            await trio.sleep(_PAUSE_S)
        if await _bring_all(layer, purpose, end):
            return
    _log.info("%r is not completed", layer)


async def _bring_all(layer: LazyLayer, purpose: Purpose, end: int | None) -> bool:
    """Whether all of it came, or no more can be kept."""
    under_way = deque[Mapping[int, Landing]]()
    batch = _BATCH_BEHIND if purpose is Purpose.BACKGROUND else _BATCH
    after = 0
    try:
        while not layer.entry.refuses:
            numbers = [n for n in layer.missing_spans(after, batch) if end is None or n < end]
            if numbers:
                after = numbers[-1] + 1
                under_way.append(layer.bring(numbers, purpose))
            if under_way and (len(under_way) == _BATCHES or not numbers):
                for landing in under_way.popleft().values():
                    await landing.wait()
            elif not numbers:
                break
    except (LazyfsError, IndexerError):  # it is logged already
        return False
    return True
