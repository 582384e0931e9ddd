"""What every mount does beside answering reads: it records them, and hastens its start."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

from msgspec import Struct

from indexer.boot_pack import PackLayer
from lazyfs.cache.cache import Cache
from lazyfs.image.boot.recording import recorded
from lazyfs.image.boot.start import Boot
from lazyfs.image.boot.trace import Tracer
from lazyfs.image.boot.warming import warmed
from lazyfs.image.reading.layer import LazyLayer
from lazyfs.image.resolve import ResolvedImage


class Hastened(Struct, frozen=True):
    """A mount that is recorded and hastened.

    Attributes:
        tracer: what was recorded.
        packed: as `starts_by_pack` says.
        warm: has the disk read what was touched so far, for somebody who is about to start here again.
    """

    tracer: Tracer
    packed: bool
    warm: Callable[[], None]


async def hasten(
    stack: AsyncExitStack,
    resolved: ResolvedImage,
    layers: Mapping[PackLayer, LazyLayer],
    metadata_file: Path,
    cache: Cache,
    boot: Boot | None,
) -> Hastened:
    """Record and hasten a mount of open layers, for as long as the stack stands.

    Args:
        stack: of the task that calls.
        resolved: the image, with all its layers.
        layers: they, each once.
        metadata_file: their tree.
        cache: where traces are.
        boot: its start; None where no pack is wanted.
    """
    warm = await stack.enter_async_context(warmed(resolved.descriptor.digest, layers, cache, metadata_file))
    packed = await starts_by_pack(boot, layers.values())
    tracer = await stack.enter_async_context(recorded(resolved, layers, cache, precise=packed))
    return Hastened(tracer, packed, partial(warm, tracer.trace))


async def starts_by_pack(boot: Boot | None, layers: Iterable[LazyLayer]) -> bool:
    """Whether a mount has of its layers what a boot pack brings, and not all.

    Then the kernel had better read no further ahead than when that was recorded: what it would ask for is not
    in the pack, and readers would have to wait for it.

    Args:
        boot: its start; None where no pack is wanted.
        layers: they.
    """
    return (
        boot is not None
        and await boot.find() is not None
        and boot.statistics().state != "failed"
        and not all(layer.entry.complete for layer in layers)
    )
