"""Tables of contents that were not made here, as the cache keeps them: by digest, maybe without windows."""

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Final

from msgspec.structs import replace

from indexer.errors import FormatError, IndexerError
from indexer.toc_codec import TocHead
from lazyfs.cache.cache import Cache
from lazyfs.image.indexes.artifact import check_head, windows_link
from lazyfs.image.indexes.indexing import IndexedLayer
from lazyfs.image.indexes.windows import RemoteWindows
from lazyfs.oci.config import ImageLayer
from lazyfs.source.attachments import Attachments

_PREFIX: Final = "toc-"


class KeptTocs:
    """Tables from elsewhere. All methods may block for the disk, and raise CacheError when it fails.

    Args:
        cache: where they are.
    """

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    def save(self, layer_digest: str, toc_digest: str, head: bytes) -> None:
        """Keep a head. Windows that are here stay."""
        self._cache.tocs.save(layer_digest, _name(toc_digest), head)

    def load(self, layer: ImageLayer, toc_digest: str) -> TocHead | None:
        """The head of a layer; None if it is not here, does not fit the image, or was found to lie."""
        digest = layer.descriptor.digest
        with suppress(FormatError):
            if self._cache.quarantine.find(digest, toc_digest) is not None:
                return None
            data = self._cache.tocs.load(digest, _name(toc_digest), toc_digest)
            if data is not None:
                with suppress(IndexerError):
                    return check_head(data, toc_digest, layer.descriptor, layer.diff_id)
        return None

    def audited(self, layer: ImageLayer, place: Attachments | None) -> IndexedLayer | None:
        """An index of a layer that passed the audit here, if reading by it needs nothing from elsewhere now.

        Args:
            layer: the layer.
            place: where windows may be had that are not here: a complete layer needs them once some of it
                has been evicted. None if nowhere.
        """
        for toc_digest in self._audited_digests(layer.descriptor.digest):
            head = self.load(layer, toc_digest)
            windows = self._windows(head) if head else None
            if head and windows is not None:
                return IndexedLayer(head, windows, audited=True)
            if head and self._is_complete(head):
                found = self.indexed(head, place) if place else IndexedLayer(head, memoryview(b""))
                return replace(found, audited=True)
        return None

    def _audited_digests(self, layer_digest: str) -> Iterator[str]:
        for name in self._cache.tocs.names(layer_digest):
            if not name.startswith(_PREFIX):
                continue
            toc_digest = f"sha256:{name.removeprefix(_PREFIX)}"
            with suppress(FormatError):
                info = self._cache.info(layer_digest, toc_digest)
                if info is not None and info.audited:
                    yield toc_digest

    def indexed(self, head: TocHead, place: Attachments) -> IndexedLayer:
        """The index that a head is part of; windows that are not here come from where it came from."""
        windows = self._windows(head)
        if windows is not None:
            return IndexedLayer(head, windows)
        link = windows_link(head)
        assert link is not None, "a file without bytes is always here"
        remote = RemoteWindows(place.blob(link), link.digest, partial(self._keep_windows, head))
        return IndexedLayer(head, memoryview(b""), remote_windows=remote)

    def _is_complete(self, head: TocHead) -> bool:
        header = head.header
        leaves = head.spans().leaves
        with self._cache.layer(header.layer_digest, head.digest, header.device_size, leaves) as entry:
            return entry.complete

    def has_windows(self, head: TocHead) -> bool:
        """Whether all that entering the layer's spans takes is here."""
        return self._windows(head) is not None

    def _windows(self, head: TocHead) -> memoryview | None:
        if windows_link(head) is None:
            return memoryview(b"")
        header = head.header
        return self._cache.tocs.windows(header.layer_digest, _name(head.digest), header.windows_digest)

    def _keep_windows(self, head: TocHead, windows: bytes) -> None:
        layer_digest = head.header.layer_digest
        data = self._cache.tocs.load(layer_digest, _name(head.digest), head.digest)
        if data is not None:
            self._cache.tocs.save(layer_digest, _name(head.digest), data, windows)


def _name(toc_digest: str) -> str:
    return _PREFIX + toc_digest.removeprefix("sha256:")
