"""What a mount brings although nobody reads it: what comes first in its layers, and behind all else the rest.

Layers whose writers put first what a start reads (`indexer.foreign.landmark`) bring that at once.
"""

import logging
from collections.abc import Iterable
from functools import partial

import trio

from indexer.errors import IndexerError
from indexer.foreign.landmark import prioritised
from indexer.toc_codec import TocHead
from lazyfs.image.boot.start import Boot
from lazyfs.image.reading.completion import complete
from lazyfs.image.reading.layer import LazyLayer
from lazyfs.image.reading.traffic import Purpose
from lazyfs.image.tasks import run_all

_log = logging.getLogger(__name__)


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
