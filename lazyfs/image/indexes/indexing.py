"""Makes the index of a layer that has none, while the layer is pulled for the first time.

The pull is paid once: compressed bytes go through the builder, uncompressed ones into the cache, and when
both digests are right, table and content appear together. Between processes a layer is pulled by one.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from typing import Final

import trio
from msgspec import Struct, field
from msgspec.structs import replace

from indexer.build import DEFAULT_SPAN_SIZE, BuiltToc, LayerBuilder
from indexer.errors import IndexerError
from indexer.spans.scan import Limits
from indexer.toc_codec import TocHead, decode_head, encode_toc
from lazyfs.cache.cache import Cache
from lazyfs.cache.filling import Filling
from lazyfs.errors import CacheError, NotFound
from lazyfs.image.indexes.windows import RemoteWindows
from lazyfs.oci.descriptor import Descriptor
from lazyfs.source.base import Blob

_log = logging.getLogger(__name__)

PARALLEL_LAYERS: Final = 3

Progress = Callable[[str, int, int], None]
"""Told of a layer under way: its digest, bytes so far, and in all. Called from any thread."""


def no_progress(_digest: str, _done: int, _total: int) -> None:
    """Progress for nobody."""


class IndexMode(Enum):
    """Where indexes may come from."""

    AUTO = "auto"  # kept here, else published by somebody, else made by a pull
    LOCAL = "local"  # kept here, else made by a pull
    REGISTRY = "registry"  # kept here, else published; never made
    NONE = "none"  # made by a pull, whatever there is


class IndexKind(Enum):
    """Whose index a layer is read by."""

    LAZYFS = "lazyfs"
    ESTARGZ = "estargz"
    ZSTD_CHUNKED = "zstd-chunked"
    SOCI = "soci"


class Voucher(Enum):
    """Who says that an index from elsewhere is the right one."""

    NOBODY = "nobody"
    MANIFEST = "manifest"  # the image's manifest names it by digest


class IndexSettings(Struct, frozen=True):
    """How layers are indexed.

    Attributes:
        span_size: uncompressed bytes per span aimed at.
        limits: bounds against bombs.
        mode: where indexes may come from.
    """

    span_size: int = DEFAULT_SPAN_SIZE
    limits: Limits = field(default_factory=Limits)
    mode: IndexMode = IndexMode.AUTO

    @property
    def name(self) -> str:
        """Under which tables of these settings are kept."""
        return f"lazyfs-{self.span_size}"


class IndexedLayer(Struct, frozen=True):
    """A layer's index.

    Attributes:
        head: the table of contents.
        windows: the window file its spans refer to, mapped; empty where it is not here.
        audited: whether the whole layer has passed by and had the table's layer digest and diffID.
        remote_windows: the window file where it is not here.
        kind: whose index it is.
        vouched_by: who vouches for it, where it was neither made nor signed by somebody trusted.
    """

    head: TocHead
    windows: memoryview
    audited: bool = False
    remote_windows: RemoteWindows | None = None
    kind: IndexKind = IndexKind.LAZYFS
    vouched_by: Voucher = Voucher.NOBODY


def load_index(cache: Cache, layer: Descriptor, name: str) -> IndexedLayer | None:
    """A layer's index that is kept under a name, if it is here, whole, and was not found to lie."""
    data = cache.tocs.load(layer.digest, name)
    if data is None:
        return None
    with suppress(IndexerError):
        head = decode_head(data)
        windows = cache.tocs.windows(layer.digest, name, head.header.windows_digest)
        lying = cache.quarantine.find(layer.digest, head.digest)
        if head.header.layer_digest == layer.digest and windows is not None and lying is None:
            return IndexedLayer(head, windows)
    return None


class Indexer:
    """Finds or makes the tables of contents of layers.

    Args:
        cache: where tables and content are kept.
        settings: how to index.
        progress: told of layers under way.
    """

    def __init__(self, cache: Cache, settings: IndexSettings, progress: Progress = no_progress) -> None:
        self._cache = cache
        self._settings = settings
        self._progress = progress
        self._limiter = trio.CapacityLimiter(PARALLEL_LAYERS)

    @property
    def limits(self) -> Limits:
        """Bounds against bombs."""
        return self._settings.limits

    def find(self, layer: Descriptor) -> IndexedLayer | None:
        """The layer's index, if one was made here and is whole."""
        if self._settings.mode is IndexMode.NONE:
            return None
        found = load_index(self._cache, layer, self._settings.name)
        return replace(found, audited=True) if found else None

    def encoded(self, indexed: IndexedLayer) -> bytes:
        """The head of an index that was made here, as it was kept.

        Raises:
            CacheError: it is not here any more.
        """
        layer_digest, toc_digest = indexed.head.header.layer_digest, indexed.head.digest
        data = self._cache.tocs.load(layer_digest, self._settings.name, toc_digest)
        if data is None:
            raise CacheError(f"the index of {layer_digest} that was made here is gone; make it again")
        return data

    async def ensure(self, layer: Descriptor, blob: Blob) -> IndexedLayer:
        """The layer's index, made now if there is none.

        Raises:
            IndexerError: the layer is damaged, too large, or not what its descriptor promises.
            NotFound: there is none, and none is to be made.
            LazyfsError: its source does not give it.
        """
        indexed = self.find(layer)
        if indexed is not None:
            return indexed
        if self._settings.mode is IndexMode.REGISTRY:
            raise NotFound(f"no index of layer {layer.digest} was published that may be used here")
        async with self._limiter, self._cache.named_lock(f"index-{layer.digest[7:]}"):
            try:
                return self.find(layer) or await self._pull(layer, blob)
            except IndexerError as error:
                error.add_note(f"layer {layer.digest}")
                raise

    async def _pull(self, layer: Descriptor, blob: Blob) -> IndexedLayer:
        with (
            self._cache.fill(layer.digest, layer.size) as filling,
            LayerBuilder(
                layer.size,
                layer.digest,
                span_size=self._settings.span_size,
                limits=self._settings.limits,
                store=lambda piece: filling.write(filling.written, piece),
            ) as builder,
        ):
            done = 0

            def consume(piece: bytes | memoryview) -> None:
                nonlocal done
                builder.feed(bytes(piece))
                done += len(piece)
                self._progress(layer.digest, done, layer.size)

            self._progress(layer.digest, 0, layer.size)
            await blob.pull(consume)
            return await trio.to_thread.run_sync(self._keep, layer, builder, filling)

    def _keep(self, layer: Descriptor, builder: LayerBuilder, filling: Filling) -> IndexedLayer:
        built: BuiltToc = builder.finish()
        data = encode_toc(built.toc)
        head = decode_head(data)
        try:
            self._cache.tocs.save(layer.digest, self._settings.name, data, built.windows)
        except CacheError as error:
            _log.warning("the index of layer %s is not kept: %s", layer.digest, error)
        with suppress(CacheError):  # the content comes again when it is read
            filling.commit(head.digest, head.header.device_size, built.toc.spans.leaves)
        return IndexedLayer(head, memoryview(built.windows), audited=True)
