"""Makes boot packs: from what starts of an image touched, and from the packs it has already."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Final

import trio

from indexer.boot_pack import PackHead, PackLayer, Run
from indexer.boot_pack_leaves import build_pack, check_spans
from indexer.errors import FormatError
from indexer.toc import Span, SpanTable
from lazyfs.errors import CacheError
from lazyfs.image.boot.trace import Trace, sparse_memory
from lazyfs.image.image import Image
from lazyfs.image.tasks import run_few

_AT_ONCE: Final = 8


def runs_of_trace(trace: Trace, layers: Sequence[PackLayer], tables: Sequence[SpanTable]) -> list[Run]:
    """The leaves that a trace touches, in its order, each once.

    Args:
        trace: of the image.
        layers: the image's layers, by number.
        tables: their span tables.

    Raises:
        FormatError: it was recorded with other indexes than the image has now, or leaves their layers.
    """
    numbers = {names: number for number, names in enumerate(layers)}
    unknown = next((names for names in trace.layers if names not in numbers), None)
    if unknown is not None:
        raise FormatError(f"a trace that was recorded with another index of layer {unknown.layer_digest}")
    own = [numbers[names] for names in trace.layers]
    touched = (
        Run(own[touch.layer], *tables[own[touch.layer]].leaf_range(touch.start, touch.end))
        for touch in trace.touches
    )
    return _joined(_once(touched, [table.leaves for table in tables]))


def _once(runs: Iterable[Run], leaves: Sequence[int]) -> Iterator[Run]:
    """Runs in layers of so many leaves, without what stood in one before."""
    seen = [sparse_memory(count + 1) for count in leaves]
    for layer, first, end in runs:
        at = seen[layer].find(b"\0", first, end)
        while at >= 0:
            known = seen[layer].find(b"\1", at, end)
            stop = known if known >= 0 else end
            seen[layer][at:stop] = b"\1" * (stop - at)
            yield Run(layer, at, stop)
            at = seen[layer].find(b"\0", stop, end)


def runs_of_pack(head: PackHead, layers: Sequence[PackLayer], tables: Sequence[SpanTable]) -> list[Run]:
    """The leaves of a pack, with the image's numbers of layers.

    Raises:
        FormatError: it was made with other indexes than the image has now, or has leaves that they do not.
        Unsupported: their spans cannot be proved leaf by leaf.
    """
    numbers = {names: number for number, names in enumerate(layers)}
    unknown = next((names for names in head.layers if names not in numbers), None)
    if unknown is not None:
        raise FormatError(f"a boot pack that was made with another index of layer {unknown.layer_digest}")
    runs = [run._replace(layer=numbers[head.layers[run.layer]]) for run in head.runs]
    check_spans(runs, tables)
    return runs


def merge(orders: Sequence[Sequence[Run]]) -> list[Run]:
    """The leaves of several starts in one order: each stands where the start that wants it first has it.

    So no start waits for more than the others want up to the same point. An order that has all leaves of the
    others stays as it is, if it is the first.
    """
    first = orders[0]
    have = set(_leaves(first))
    if all(leaf in have for order in orders[1:] for leaf in _leaves(order)):
        return list(first)
    best: dict[tuple[int, int], tuple[int, int]] = {}
    for number, order in enumerate(orders):
        for position, leaf in enumerate(_leaves(order)):
            place = (position, number)
            best[leaf] = min(best.get(leaf, place), place)
    return _joined(Run(layer, leaf, leaf + 1) for layer, leaf in sorted(best, key=best.__getitem__))


def _leaves(runs: Sequence[Run]) -> Iterator[tuple[int, int]]:
    return ((layer, leaf) for layer, first, end in runs for leaf in range(first, end))


def _joined(runs: Iterable[Run]) -> list[Run]:
    """The same leaves in the same order, in few runs."""
    joined: list[Run] = []
    for run in runs:
        last = joined[-1] if joined else None
        if last is not None and (last.layer, last.end_leaf) == (run.layer, run.first_leaf):
            joined[-1] = last._replace(end_leaf=run.end_leaf)
        else:
            joined.append(run)
    return joined


class PackMaker:
    """Makes packs of one image.

    Args:
        image: open; what is missing of the leaves' spans is fetched.

    Attributes:
        layers: its layers, each once.
        tables: their span tables.
    """

    def __init__(self, image: Image) -> None:
        heads = {index.head.header.layer_digest: index.head for index in image.indexed}
        self.layers = tuple(PackLayer(digest, head.digest) for digest, head in heads.items())
        opened = {
            layer.descriptor.digest: lazy
            for layer, lazy in zip(image.resolved.layers, image.layers, strict=True)
        }
        self._lazy = [opened[layer.layer_digest] for layer in self.layers]
        self.tables = [lazy.spans for lazy in self._lazy]

    async def make(self, runs: Sequence[Run]) -> bytes:
        """The pack of these leaves, in this order.

        Raises:
            Unsupported: their spans cannot be proved leaf by leaf.
            IndexerError: what came is damaged.
            LazyfsError: it did not come.
            CacheError: it went again before all had come, as there is no room.
        """
        check_spans(runs, self.tables)
        spans = {
            (run.layer, span.number): span
            for run in runs
            for span in self.tables[run.layer].of_leaves(run.first_leaf, run.end_leaf)
        }

        await run_few((partial(self._bring, layer, span) for (layer, _), span in spans.items()), _AT_ONCE)
        used = sorted({run.layer for run in runs})
        places = {layer: place for place, layer in enumerate(used)}
        return await trio.to_thread.run_sync(
            lambda: build_pack(
                [self.layers[layer] for layer in used],
                [self.tables[layer] for layer in used],
                [run._replace(layer=places[run.layer]) for run in runs],
                lambda layer, start, end: self._read(used[layer], start, end),
            )
        )

    async def _bring(self, layer: int, span: Span) -> None:
        lazy = self._lazy[layer]
        if not lazy.entry.has(span.first_leaf, span.end_leaf):
            await lazy.read(span.uncompressed_start, span.size)

    def _read(self, layer: int, start: int, end: int) -> bytes:
        leaves = self.tables[layer].leaf_range(start, end)
        data = self._lazy[layer].entry.read_if_here(*leaves, start, end - start)
        if data is None:
            raise CacheError("the cache has no room for all that a boot pack is made of")
        return data
