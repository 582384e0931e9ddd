"""The leaves of a boot pack: proved one chunk after the other, or cut and proved for a new pack."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Final, NamedTuple

from indexer.boot_pack import Chunk, PackHead, PackLayer, RawChunk, Run, decompress, encode_pack
from indexer.digest import DIGEST_SIZE, LEAF_SIZE, leaf_digests
from indexer.errors import DigestMismatch, FormatError, Unsupported
from indexer.leaf_proofs import Node, SpanProof, SpanTree
from indexer.toc import Proof, Span, SpanTable

CHUNK_SIZE: Final = 1 << 20
"""Bytes of leaves in a chunk, at most: twice as many make a pack 3 % smaller, and readers wait longer."""

LEVEL: Final = 19
"""Of zstd: 8 % smaller than 15, for twice the time; it is decompressed as fast."""

_FIRST_CHUNK: Final = 256 << 10
_GROWTH: Final = 4

_MOST_TREES: Final = 4096  # of spans whose digests are held while a pack is made


class Leaves(NamedTuple):
    """Proved content: whole leaves of one span, in a row.

    Attributes:
        layer: number of the layer in the pack.
        start: uncompressed offset of the first byte.
        first_leaf: number of the first leaf in the layer.
        data: their bytes.
    """

    layer: int
    start: int
    first_leaf: int
    data: bytes


class _Part(NamedTuple):
    """The part of a run that lies in one span."""

    layer: int
    span: Span
    first_leaf: int
    end_leaf: int

    @property
    def start(self) -> int:
        return self.span.uncompressed_start + LEAF_SIZE * (self.first_leaf - self.span.first_leaf)

    @property
    def end(self) -> int:
        end = self.span.uncompressed_start + LEAF_SIZE * (self.end_leaf - self.span.first_leaf)
        return min(end, self.span.uncompressed_end)


_Key = tuple[int, int]
"""A layer's number, and that of a span in it."""

_SPAN_OF_PART: Final = itemgetter(0, 1)


def check_spans(runs: Iterable[Run], tables: Sequence[SpanTable]) -> None:
    """Runs are of these layers, whose leaves can be proved one by one.

    Raises:
        FormatError: leaves that a layer does not have.
        Unsupported: a span is proved as a whole only, as those of other tools' indexes are.
    """
    for run in runs:
        table = tables[run.layer]
        if run.end_leaf > table.leaves:
            raise FormatError(f"boot pack with leaf {run.end_leaf - 1} of a layer that has {table.leaves}")
        for span in table.of_leaves(run.first_leaf, run.end_leaf):
            if span.proof is not Proof.MERKLE:
                raise Unsupported(
                    "a boot pack needs indexes that prove single leaves; this is another tool's"
                )


def _parts(runs: Iterable[Run], tables: Sequence[SpanTable]) -> Iterator[_Part]:
    for run in runs:
        for span in tables[run.layer].of_leaves(run.first_leaf, run.end_leaf):
            first, end = max(run.first_leaf, span.first_leaf), min(run.end_leaf, span.end_leaf)
            yield _Part(run.layer, span, first, end)


def _by_span(parts: Iterable[_Part]) -> Iterator[tuple[int, Span, list[int]]]:
    """The leaves of a chunk by span, ascending: in this order their proofs are told."""
    ordered = sorted(parts, key=lambda part: (part.layer, part.span.number, part.first_leaf))
    for (layer, span), group in groupby(ordered, key=_SPAN_OF_PART):
        numbers = [leaf - span.first_leaf for part in group for leaf in range(part.first_leaf, part.end_leaf)]
        yield layer, span, numbers


class PackReader:
    """Takes a pack's chunks in order and gives their leaves, each proved.

    Args:
        head: the pack's.
        tables: the span tables of its layers.

    Raises:
        FormatError, Unsupported: as `check_spans` says.

    Attributes:
        rejected: leaves that were not what the tables of contents promise.
    """

    def __init__(self, head: PackHead, tables: Sequence[SpanTable]) -> None:
        check_spans(head.runs, tables)
        self._head = head
        self._tables = tables
        self._proofs: dict[_Key, SpanProof] = {}
        self.rejected = 0

    def read(self, chunk: Chunk, frame: bytes | memoryview) -> list[Leaves]:
        """The leaves of the next chunk; those that cannot be proved are counted and left out.

        Raises:
            FormatError: it is damaged. Later chunks can still be read; what stands on this one is rejected.
        """
        parts = list(_parts(self._head.runs[chunk.first_run : chunk.end_run], self._tables))
        wanted = [
            _Wanted(layer, span, self._proof(layer, span).needed(numbers))
            for layer, span, numbers in _by_span(parts)
        ]
        data = memoryview(decompress(frame, chunk.raw_size, "a chunk of a boot pack"))
        digests, content = data[: DIGEST_SIZE * chunk.digests], data[DIGEST_SIZE * chunk.digests :]
        if sum(len(each.nodes) for each in wanted) != chunk.digests or sum(
            part.end - part.start for part in parts
        ) != len(content):
            raise FormatError("a chunk of a boot pack with other leaves or proofs than its table says")
        pieces = _cut_content(parts, content)
        proved = self._proved(wanted, digests, _leaf_digests(pieces))
        return [
            Leaves(part.layer, part.start, part.first_leaf, bytes(piece))
            for part, piece in pieces
            if (part.layer, part.span.number) in proved
        ]

    def _proved(
        self, wanted: Iterable["_Wanted"], told: memoryview, leaves: Mapping[_Key, Mapping[int, bytes]]
    ) -> set[_Key]:
        """The spans whose leaves, in this chunk, are what the tables promise."""
        proved = set()
        for layer, span, nodes in wanted:
            key = (layer, span.number)
            digests = [
                bytes(told[at : at + DIGEST_SIZE]) for at in range(0, len(nodes) * DIGEST_SIZE, DIGEST_SIZE)
            ]
            told = told[len(nodes) * DIGEST_SIZE :]
            if self._proofs[key].check(leaves[key], dict(zip(nodes, digests, strict=True))):
                proved.add(key)
            else:
                self.rejected += len(leaves[key])
        return proved

    def _proof(self, layer: int, span: Span) -> SpanProof:
        key = (layer, span.number)
        if key not in self._proofs:
            self._proofs[key] = SpanProof(span.end_leaf - span.first_leaf, span.root)
        return self._proofs[key]


class _Wanted(NamedTuple):
    """The digests that a chunk has to tell of a span."""

    layer: int
    span: Span
    nodes: list[Node]


def _cut_content(parts: Iterable[_Part], content: memoryview) -> list[tuple[_Part, memoryview]]:
    pieces = []
    at = 0
    for part in parts:
        size = part.end - part.start
        pieces.append((part, content[at : at + size]))
        at += size
    return pieces


def _leaf_digests(pieces: Iterable[tuple[_Part, memoryview]]) -> dict[_Key, dict[int, bytes]]:
    """The leaves' digests by span and number in it."""
    found: dict[_Key, dict[int, bytes]] = {}
    for part, piece in pieces:
        digests = found.setdefault((part.layer, part.span.number), {})
        digests.update(enumerate(leaf_digests(piece), part.first_leaf - part.span.first_leaf))
    return found


ReadContent = Callable[[int, int, int], bytes]
"""Gives bytes [start, end) of the address space of a layer, by number."""


def build_pack(
    layers: Sequence[PackLayer],
    tables: Sequence[SpanTable],
    runs: Sequence[Run],
    read: ReadContent,
    *,
    chunk_size: int = CHUNK_SIZE,
    level: int = LEVEL,
) -> bytes:
    """A pack of these leaves, in this order.

    Args:
        layers: those that the runs speak of, by number.
        tables: their span tables.
        runs: the leaves, no one twice.
        read: gives content, which need not have been checked.
        chunk_size: bytes of leaves in a chunk, at most, but for a single leaf. The first ones are smaller, so
            that nobody waits for much: what is waited for is no more than a quarter of what came before.
        level: of zstd.

    Raises:
        FormatError, Unsupported: as `check_spans` says.
        DigestMismatch: the content is not what the tables promise.
    """
    check_spans(runs, tables)
    writer = _Writer(tables, read)
    cut = list(_cut(runs, max(chunk_size // LEAF_SIZE, 1), _FIRST_CHUNK // LEAF_SIZE))
    chunks = [writer.chunk(group) for group in cut]
    return encode_pack(layers, [run for group in cut for run in group], chunks, level)


def _cut(runs: Iterable[Run], most: int, first: int) -> Iterator[list[Run]]:
    """The runs in groups of at most `most` leaves, the first of at most `first`, long ones in pieces."""
    group: list[Run] = []
    room = min(most, first)
    passed = 0
    for run in runs:
        at = run.first_leaf
        while at < run.end_leaf:
            stop = min(run.end_leaf, at + room)
            group.append(Run(run.layer, at, stop))
            room -= stop - at
            passed += stop - at
            at = stop
            if not room:
                yield group
                group, room = [], min(most, max(first, passed // _GROWTH))
    if group:
        yield group


class _Writer:
    def __init__(self, tables: Sequence[SpanTable], read: ReadContent) -> None:
        self._tables = tables
        self._read = read
        self._proofs: dict[_Key, SpanProof] = {}
        self._trees: OrderedDict[_Key, SpanTree] = OrderedDict()

    def chunk(self, runs: Sequence[Run]) -> RawChunk:
        parts = list(_parts(runs, self._tables))
        told = []
        for layer, span, numbers in _by_span(parts):
            key = (layer, span.number)
            if key not in self._proofs:
                self._proofs[key] = SpanProof(span.end_leaf - span.first_leaf, b"")
            tree = self._tree(layer, span)
            told += [tree[node] for node in self._proofs[key].needed(numbers)]
        content = [self._read(part.layer, part.start, part.end) for part in parts]
        return RawChunk(len(runs), len(told), b"".join([*told, *content]))

    def _tree(self, layer: int, span: Span) -> SpanTree:
        key = (layer, span.number)
        tree = self._trees.get(key)
        if tree is None:
            tree = SpanTree(self._read(layer, span.uncompressed_start, span.uncompressed_end))
            if tree.root != span.root:
                raise DigestMismatch(f"span {span.number}", span.root.hex(), tree.root.hex())
            self._trees[key] = tree
            if len(self._trees) > _MOST_TREES:
                self._trees.popitem(last=False)
        return tree
