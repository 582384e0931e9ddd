"""Brings what is missing of a layer, front to back: when much of it was read, or when somebody says so."""

import logging
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Final

import trio

from indexer.errors import IndexerError
from lazyfs.errors import LazyfsError
from lazyfs.image.reading.landing import Landing
from lazyfs.image.reading.layer import LazyLayer
from lazyfs.image.reading.traffic import Purpose

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
