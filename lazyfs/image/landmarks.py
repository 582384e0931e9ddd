"""Layers whose writers put first what a start reads: that is brought at once, where no boot pack is."""

import logging
from collections.abc import Iterable

import trio

from indexer.errors import IndexerError
from indexer.foreign.landmark import prioritised
from indexer.toc_codec import TocHead
from lazyfs.errors import CacheError
from lazyfs.image.boot import Boot
from lazyfs.image.layer import LazyLayer
from lazyfs.image.traffic import Purpose

_log = logging.getLogger(__name__)


async def bring_prioritised(layers: Iterable[tuple[TocHead, LazyLayer]], boot: Boot | None = None) -> None:
    """Bring what stands before the landmarks of a mount's layers. Nobody waits for it.

    Args:
        layers: with their tables.
        boot: the mount's start, if it has one: nothing is brought beside a boot pack.
    """
    if boot is not None and await boot.find() is not None:
        return
    for head, layer in layers:
        try:
            first = await trio.to_thread.run_sync(prioritised, head, layer.spans)
            numbers = [number for number in first if not layer.has_span(number)]
        except (IndexerError, CacheError) as error:
            _log.info("%r: what is wanted first is not known: %s", layer, error)
            continue
        if numbers and not layer.entry.refuses:
            _log.info("%r: %d spans are wanted first", layer, len(numbers))
            layer.bring(numbers, Purpose.PACK)
