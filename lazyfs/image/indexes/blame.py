"""Which table from elsewhere is why layers make no tree: that one is done without."""

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from indexer.errors import IndexerError
from indexer.merge import Merger
from indexer.toc_codec import TocHead
from lazyfs.image.indexes.indexing import IndexedLayer

_log = logging.getLogger(__name__)

_MOST_TRIES: Final = 2  # tables from elsewhere for one layer, before it is indexed here


class Refused:
    """Tables that layers were to be read by, and made no tree with."""

    def __init__(self) -> None:
        self._tables: dict[str, set[str]] = {}

    def among(self, indexed: Mapping[str, IndexedLayer]) -> set[str]:
        """Digests of the layers whose index is one of these."""
        return {
            digest for digest, index in indexed.items() if index.head.digest in self._tables.get(digest, ())
        }

    def exhausted(self) -> set[str]:
        """Digests of the layers for which nothing more is looked for elsewhere."""
        return {digest for digest, tables in self._tables.items() if len(tables) >= _MOST_TRIES}

    def add(
        self,
        digests: Sequence[str],
        indexed: Mapping[str, IndexedLayer],
        own: Collection[str],
        error: IndexerError,
    ) -> bool:
        """Refuse the tables that may be to blame.

        Args:
            digests: of the layers, the lowest first.
            indexed: by what they were read.
            own: digests of those whose index was made or audited here, which is not to blame.
            error: why they make no tree.

        Returns:
            Whether there was one; else the image itself is none.
        """
        heads = [indexed[digest].head for digest in digests]
        blamed = blame(heads, [number for number, digest in enumerate(digests) if digest not in own])
        for number in blamed:
            layer, toc = digests[number], heads[number].digest
            _log.warning("index %s of layer %s is passed by: %s", toc, layer, error)
            self._tables.setdefault(layer, set()).add(toc)
        return bool(blamed)


def blame(heads: Sequence[TocHead], foreign: Sequence[int]) -> Sequence[int]:
    """Numbers of tables that may be why layers make no tree.

    The first layer that cannot be put over those below tells: its own table is at fault, or, if that was
    made here, the one below it. Where all layers fit, any of them may be.

    Args:
        heads: the layers' tables, the lowest first.
        foreign: which of them may be to blame, ascending.
    """
    merger = Merger()
    for number, head in enumerate(heads):
        try:
            merger.apply(number, head.members())
        except IndexerError:
            return [other for other in foreign if other <= number][-1:]
    return foreign
