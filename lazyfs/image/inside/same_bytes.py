"""Whether two files hold the same bytes, as far as indexes tell without reading any.

Three answers cost nothing and are exact: another size is other bytes; the same place of the same layer is
the same bytes; and spans with the same digests at the same distance from the files' starts hold the same
bytes, which layers built again have up to their first change. Where a span has two digests both must be the
same: what is read of it is checked by the one or the other. Digests of different kinds tell nothing of each
other, and those of compressed bytes nothing at all.
"""

from collections.abc import Sequence

from msgspec import Struct, field

from indexer.toc import AddressSpace, Proof, SpanTable
from lazyfs.image.image import Image
from lazyfs.image.indexes.indexing import IndexedLayer


class Place(Struct, frozen=True):
    """Where a file's content lies.

    Attributes:
        index: of its layer.
        start: uncompressed offset.
        size: bytes, at least 1.
    """

    index: IndexedLayer
    start: int
    size: int


class SameBytes(Struct, frozen=True):
    """Compares places in two images, keeping the span tables it needed."""

    _tables: dict[str, SpanTable] = field(default_factory=dict)

    def unproven(self, one: Place, other: Place) -> list[tuple[int, int]]:
        """The ranges [start, end) of two files of the same size, from the files' starts, that may differ.

        Raises:
            FormatError: a table is damaged.
        """
        if one.start == other.start and _same_stream(one.index, other.index):
            return []
        there = set(self._spans_of(other))
        proven = [span[:2] for span in self._spans_of(one) if span in there]
        return _gaps(proven, one.size)

    def _spans_of(self, place: Place) -> list[tuple[int, int, int, Proof, bytes, bytes]]:
        """(start, end, padding, proof, root, blake3) of a file's spans, ascending, counted from its start."""
        spans = self._table(place.index)
        start, end = place.start, place.start + place.size
        if end > spans.uncompressed_size:  # sparse: its content lies in the tail, which has no spans
            return []
        covering = [spans[number] for number in spans.covering(start, end)]
        return [
            (s.uncompressed_start - start, s.uncompressed_end - start, s.padding, s.proof, s.root, s.blake3)
            for s in covering
            if s.proof is not Proof.COMPRESSED
        ]

    def _table(self, index: IndexedLayer) -> SpanTable:
        digest = index.head.digest
        if digest not in self._tables:
            self._tables[digest] = index.head.spans()
        return self._tables[digest]


def place_of(image: Image, nid: int) -> Place | None:
    """Where a regular file's content lies; None where it has none."""
    extent = image.metadata.extent(nid)
    if extent is None:
        return None
    return Place(image.indexed[extent[0]], extent[1], image.metadata.inode(nid).size)


def _same_stream(one: IndexedLayer, other: IndexedLayer) -> bool:
    """Whether the same offset means the same byte in both: one table, or one tar however compressed.

    A diffID counts only where the whole layer was seen to have it.
    """
    if one.head.digest == other.head.digest:
        return True
    headers = (one.head.header, other.head.header)
    return (
        one.audited
        and other.audited
        and all(header.address_space is AddressSpace.TAR for header in headers)
        and headers[0].diff_id == headers[1].diff_id != ""
    )


def _gaps(proven: Sequence[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    gaps = []
    at = 0
    for start, end in proven:
        if start > at:
            gaps.append((at, start))
        at = max(at, end)
    if at < size:
        gaps.append((at, size))
    return gaps
