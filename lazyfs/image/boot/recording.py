"""Keeps what a mount's readers touch: while it lasts now and then, and at its end."""

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, Protocol

import trio

from indexer.boot_pack import PackLayer
from indexer.errors import IndexerError
from indexer.toc import Extent
from lazyfs.cache.cache import Cache
from lazyfs.errors import CacheError
from lazyfs.image.boot.trace import Trace, TracedLayer, Tracer, decode_trace
from lazyfs.image.reading.layer import Watch
from lazyfs.image.resolve import ResolvedImage
from lazyfs.image.tasks import background_tasks

KEPT: Final = 8
"""Traces of an image that are kept, the newest ones."""

_EVERY_S: Final = 30.0

_log = logging.getLogger(__name__)


class RecordedLayer(Protocol):
    """A layer that tells of its reads."""

    @property
    def size(self) -> int:
        """Bytes of its stream."""

    @property
    def extents(self) -> Sequence[Extent]:
        """Its tail."""

    def watch(self, watcher: Watch) -> None:
        """Tell somebody of every read."""

    def unwatch(self, watcher: Watch) -> None:
        """Tell them no more."""


@asynccontextmanager
async def recorded(
    resolved: ResolvedImage,
    layers: Mapping[PackLayer, RecordedLayer],
    cache: Cache,
    *,
    precise: bool,
    program: str = "",
) -> AsyncIterator[Tracer]:
    """Records the reads of a mount, and keeps the trace in the cache.

    Args:
        resolved: what is mounted.
        layers: its layers, each once.
        cache: where the trace goes.
        precise: whether the kernel reads little ahead.
        program: what runs, if that is known; without its arguments, which may hold secrets.
    """
    traced = [TracedLayer(names, layer.size, layer.extents) for names, layer in layers.items()]
    tracer = Tracer(resolved.name, resolved.descriptor.digest, traced, precise=precise)
    watchers = [(layer, partial(tracer.note, number)) for number, layer in enumerate(layers.values())]
    keeper = _Keeper(tracer, cache, program)
    async with background_tasks() as nursery:
        nursery.start_soon(keeper.run)
        for layer, watcher in watchers:
            layer.watch(watcher)
        try:
            yield tracer
        finally:
            for layer, watcher in watchers:
                layer.unwatch(watcher)
            with trio.CancelScope(shield=True):
                await keeper.keep()


class _Keeper:
    def __init__(self, tracer: Tracer, cache: Cache, program: str) -> None:
        self._tracer = tracer
        self._cache = cache
        self._program = program
        self._kept = 0
        self._one_at_a_time = trio.Lock()

    async def run(self) -> None:
        while True:
            await trio.sleep(_EVERY_S)
            await self.keep()

    async def keep(self) -> None:
        """Keep the trace, if there is something new in it."""
        async with self._one_at_a_time:
            if self._tracer.size == self._kept:
                return
            self._kept = self._tracer.size
            try:
                await trio.to_thread.run_sync(self._save)
            except CacheError as error:
                _log.info("the trace is not kept: %s", error)

    def _save(self) -> None:
        save_trace(self._cache, self._tracer.trace(self._program))


def save_trace(cache: Cache, trace: Trace) -> None:
    """Keep a trace in place of the one that began at the same instant.

    Raises:
        CacheError: there is no room, or the disk fails.
    """
    name = f"{int(trace.began * 1e6)}-{'precise' if trace.precise else 'all'}.json"
    cache.traces.save(trace.manifest, name, trace.encode(), KEPT)


def newest_trace(cache: Cache, manifest: str) -> Trace | None:
    """The newest trace of an image that is kept, if there is one.

    Raises:
        IndexerError: it is damaged.
        CacheError: the disk fails.
    """
    for name in cache.traces.names(manifest):
        data = cache.traces.load(manifest, name)
        if data is not None:
            return decode_trace(data)
    return None


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
