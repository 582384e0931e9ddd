"""Keeps what a mount's readers touch: while it lasts now and then, and at its end."""

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import trio

from indexer.boot_pack import PackLayer
from indexer.errors import IndexerError
from lazyfs.cache.cache import Cache
from lazyfs.errors import CacheError
from lazyfs.image.image import Image
from lazyfs.image.tasks import open_tasks
from lazyfs.image.trace import Readable, Trace, TracedLayer, Tracer, decode_trace

KEPT: Final = 8
"""Traces of an image that are kept, the newest ones."""

_EVERY_S: Final = 30.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recording:
    """A mount that is recorded.

    Attributes:
        tracer: what was recorded so far.
        readers: the image's layers, recorded when they are read.
    """

    tracer: Tracer
    readers: Sequence[Readable]


@asynccontextmanager
async def recorded(
    image: Image, cache: Cache, *, precise: bool, command: str = ""
) -> AsyncIterator[Recording]:
    """Records the reads of an image, and keeps the trace in the cache.

    Args:
        image: what is read.
        cache: where the trace goes.
        precise: whether the kernel reads nothing ahead.
        command: what runs, if that is known.
    """
    tracer = tracer_of(image, precise=precise)
    digests = [layer.descriptor.digest for layer in image.resolved.layers]
    numbers = list(map(list(dict.fromkeys(digests)).index, digests))
    readers = [tracer.reader(number, layer) for number, layer in zip(numbers, image.layers, strict=True)]
    keeper = _Keeper(tracer, cache, command)
    async with open_tasks() as nursery:
        nursery.start_soon(keeper.run)
        try:
            yield Recording(tracer, readers)
        finally:
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await keeper.keep()


def tracer_of(image: Image, *, precise: bool) -> Tracer:
    """A tracer of an image's layers, each once."""
    indexes = {index.head.header.layer_digest: index.head for index in image.indexed}
    layers = [
        TracedLayer(PackLayer(digest, head.digest), head.header.uncompressed_size, head.extents())
        for digest, head in indexes.items()
    ]
    resolved = image.resolved
    return Tracer(resolved.name, resolved.descriptor.digest, layers, precise=precise)


class _Keeper:
    def __init__(self, tracer: Tracer, cache: Cache, command: str) -> None:
        self._tracer = tracer
        self._cache = cache
        self._command = command
        self._kept = 0

    async def run(self) -> None:
        while True:
            await trio.sleep(_EVERY_S)
            await self.keep()

    async def keep(self) -> None:
        """Keep the trace, if there is something new in it."""
        if len(self._tracer) == self._kept:
            return
        self._kept = len(self._tracer)
        trace = self._tracer.trace(self._command)
        try:
            await trio.to_thread.run_sync(save_trace, self._cache, trace)
        except CacheError as error:
            _log.info("the trace is not kept: %s", error)


def save_trace(cache: Cache, trace: Trace) -> None:
    """Keep a trace in place of the one that began at the same instant.

    Raises:
        CacheError: there is no room, or the disk fails.
    """
    name = f"{int(trace.began * 1e6)}-{'precise' if trace.precise else 'all'}.json"
    cache.traces.save(trace.manifest, name, trace.encode(), KEPT)


def kept_traces(cache: Cache, manifest: str) -> list[Trace]:
    """The traces of an image that are kept, the newest first.

    Raises:
        CacheError: the disk fails.
    """
    found = []
    for name in cache.traces.names(manifest):
        data = cache.traces.load(manifest, name)
        if data is not None:
            try:
                found.append(decode_trace(data))
            except IndexerError as error:
                _log.info("a trace is passed by: %s", error)
    return found
