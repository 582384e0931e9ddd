"""Taking content out of an entry that others read, write and sync meanwhile, in any process.

A reader looks at the marks, reads the bytes, and looks at the entry's counter of evictions before and after
(`LayerEntry.read_if_here`). Nothing is locked for that. What is evicted goes in this order:

1. `marks_locked`: nobody syncs or clears. Marks that outlast a power cut are turned into marks that do not,
   and that is made durable: from here on, a power cut at any point forgets the leaves.
2. `writing`: nobody writes data or marks. The marks go, then the counter moves on, then holes are punched.

A reader that saw a mark and bytes of a hole also sees that the counter has moved: it was moved before the
hole, and had not been when the mark was seen. It looks again, and finds no mark. A writer that brings the
leaves again waits for the end of 2.
"""

import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from indexer.toc import Span
from lazyfs.cache.entry_files import ABSENT, PATIENCE_S, PRESENT, SYNCED, EntryFiles
from lazyfs.cache.files import punch_hole


class Extent(NamedTuple):
    """Neighbouring spans: bytes [start, end) of the device, and their leaves [first_leaf, end_leaf)."""

    start: int
    end: int
    first_leaf: int
    end_leaf: int


def extents_of(spans: Iterable[Span]) -> list[Extent]:
    """Spans in ascending order, neighbours joined."""
    extents: list[Extent] = []
    for span in spans:
        last = extents[-1] if extents else None
        if last and (last.end, last.end_leaf) == (span.uncompressed_start, span.first_leaf):
            extents[-1] = Extent(last.start, span.uncompressed_end, last.first_leaf, span.end_leaf)
        else:
            extents.append(
                Extent(span.uncompressed_start, span.uncompressed_end, span.first_leaf, span.end_leaf)
            )
    return extents


def evict(files: EntryFiles, extents: Sequence[Extent]) -> bool:
    """Forgets extents and gives their disk space back. Blocks for the disk.

    Returns:
        False where the file system cannot punch holes: they are forgotten, the space stays taken.

    Raises:
        TimeoutError: somebody holds the locks for too long; perhaps nothing is forgotten.
        OSError: the disk fails; what was forgotten may still take space.
    """
    with files.marks_locked(PATIENCE_S):
        durable = [run for e in extents for run in files.runs(SYNCED, e.first_leaf, e.end_leaf)]
        for first_leaf, end_leaf in durable:
            files.mark(first_leaf, end_leaf, PRESENT)
        if durable:
            os.fdatasync(files.presence)
        with files.writing():
            for extent in extents:
                files.mark(extent.first_leaf, extent.end_leaf, ABSENT)
            files.count_eviction()
            punched = [punch_hole(files.data, extent.start, extent.end) for extent in extents]
    return all(punched)
