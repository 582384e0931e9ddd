"""Reads of several pages of which some are here, and how nobody who wants one of those waits for the others.

The kernel asks for what is around the page that somebody wants, and does not say which one that is. What a
boot pack brought are single pages: with a registry that keeps silent, a fault on one of them took as long as
a read may wait at all, a minute. If such a read fails, the kernel asks again, for the wanted page alone
(`filemap_read_folio`). So these reads wait a while, as neighbours are usually wanted next, and then fail; and
once a layer's reads have waited in vain they fail at once, until one of them brings something.
"""

import errno
from math import inf
from mmap import PAGESIZE
from typing import Final

from lazyfs.mount.failed_reads import FailedReads

PATIENCE_S: Final = 2.0
"""How long a read waits for what is not here, where some is: more than a slow line takes for a span."""

_PAGE: Final = PAGESIZE


class PartialReads:
    """What is known of layers that keep their readers waiting."""

    def __init__(self) -> None:
        self._in_vain: set[int] = set()
        self._given_up = FailedReads()

    def patience_s(self, layer: int, start: int, size: int) -> float:
        """How long a read of [start, start + size) waits, if some of it is here; infinite for a single page.

        So it is where the kernel asks again, but not for a page.
        """
        if size <= _PAGE or self._given_up.errno(layer, start) is not None:
            return inf
        return 0.0 if layer in self._in_vain else PATIENCE_S

    def given_up(self, layer: int, start: int, size: int) -> None:
        """A read was not waited for any longer: the kernel is to ask for the wanted page."""
        self._given_up.add(layer, start, size, errno.EIO)

    def failed(self, layer: int) -> None:
        """A read of a layer has brought nothing."""
        self._in_vain.add(layer)

    def brought(self, layer: int) -> None:
        """A read of a layer has brought something."""
        self._in_vain.discard(layer)
