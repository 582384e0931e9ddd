"""Builds a layer's Toc while its bytes stream by.

Two threads share the work: the caller's inflates and finds checkpoints, a second one hashes leaves and the
diffID, parses the tar and hands the bytes to the store. Both spend their time in C without the GIL.
"""

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, Self

from indexer.digest import LEAF_SIZE, merkle_root, sha256_digest
from indexer.errors import DigestMismatch, FormatError
from indexer.scan import Checkpoint, Limits, Scanner, bounded
from indexer.spans import SNIFF_SIZE, make_scanner, sniff
from indexer.tar_stream import TarParser
from indexer.toc import AddressSpace, Compression, Span, SpanTable, Toc, TocHeader
from indexer.toc_codec import compress_window

DEFAULT_SPAN_SIZE: Final = 384 << 10
"""Uncompressed bytes per span aimed at; ARCHITECTURE.md has the measurements behind the number."""

_QUEUE_LENGTH: Final = 16

Store = Callable[[bytes], None]


@dataclass(frozen=True, slots=True)
class BuiltToc:
    """What a build gives.

    Attributes:
        toc: the table of contents.
        windows: the window file that its spans refer to.
    """

    toc: Toc
    windows: bytes


class LayerBuilder:
    """Takes a layer's compressed bytes in any cuts; `finish` gives its Toc. A context manager.

    Args:
        layer_size: compressed bytes of the whole layer, as its descriptor promises.
        layer_digest: its digest, as its descriptor promises.
        span_size: uncompressed bytes per span to aim at.
        limits: bounds against bombs.
        store: receives the uncompressed bytes in order, on the second thread.
    """

    def __init__(
        self,
        layer_size: int,
        layer_digest: str,
        *,
        span_size: int = DEFAULT_SPAN_SIZE,
        limits: Limits | None = None,
        store: Store | None = None,
    ) -> None:
        limits = limits or Limits()
        self._layer_size = layer_size
        self._layer_digest = layer_digest
        self._span_size = span_size
        self._compressed_hash = sha256()
        self._compressed_size = 0
        self._head = b""
        self._compression: Compression | None = None
        self._scanner: Scanner | None = None
        self._produced = 0
        self._check_size = bounded(limits, layer_size)
        self._points: list[Checkpoint] = []
        self._windows: dict[int, bytes] = {}
        self._content = _Content(limits, store)
        self._thread = _SecondThread(self._content)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.stop()

    def feed(self, data: bytes) -> None:
        """Take the next compressed bytes, cut anywhere.

        Raises:
            IndexerError: the layer is damaged, too large, or of a kind that is not read here.
        """
        self._compressed_hash.update(data)
        self._compressed_size += len(data)
        if self._compressed_size > self._layer_size:
            raise FormatError(f"layer is longer than the {self._layer_size} bytes its descriptor promises")
        if self._scanner is None:
            self._head += data
            if len(self._head) < SNIFF_SIZE:
                return
            data, self._head = self._head, b""
            self._begin(data)
        assert self._scanner is not None
        self._scanner.feed(data)

    def finish(self) -> BuiltToc:
        """The Toc, once all bytes were fed.

        Raises:
            IndexerError: the layer is damaged, incomplete, or not what its descriptor promises.
        """
        if self._scanner is None:
            self._begin(self._head)
        assert self._scanner is not None
        if self._head:
            self._scanner.feed(self._head)
        if self._compressed_size != self._layer_size:
            raise FormatError(
                f"layer has {self._compressed_size} bytes where its descriptor promises {self._layer_size}"
            )
        actual = "sha256:" + self._compressed_hash.hexdigest()
        if actual != self._layer_digest:
            raise DigestMismatch("layer", self._layer_digest, actual)
        self._scanner.close()
        self._thread.join()
        return self._built()

    def _begin(self, head: bytes) -> None:
        self._compression = sniff(head)
        self._scanner = make_scanner(self._compression, self, self._span_size)

    def output(self, data: bytes) -> None:
        """From the scanner: the next uncompressed bytes."""
        self._produced += len(data)
        self._check_size(self._produced)
        self._thread.put(data)

    def checkpoint(self, point: Checkpoint) -> None:
        """From the scanner: a span begins here."""
        if self._points and self._points[-1].uncompressed_start == point.uncompressed_start:
            self._points.pop()  # an empty member or frame came between
            self._windows.pop(point.uncompressed_start, None)
        elif self._points:
            self._thread.put(None)
        self._points.append(point)

    def window(self, uncompressed_start: int, window: bytes) -> None:
        """From the scanner: the sparse window of an earlier checkpoint."""
        self._windows[uncompressed_start] = compress_window(window)

    def _built(self) -> BuiltToc:
        content = self._content.close()
        spans, windows = self._spans(content.roots)
        windows_file = b"".join(windows)
        assert self._compression is not None
        header = TocHeader(
            layer_digest=self._layer_digest,
            layer_size=self._layer_size,
            diff_id=content.diff_id,
            uncompressed_size=self._produced,
            device_size=content.parser.device_size,
            compression=self._compression,
            address_space=AddressSpace.TAR,
            span_size=self._span_size,
            windows_digest=sha256_digest(windows_file),
        )
        members, extents = content.parser.members, tuple(content.parser.extents)
        return BuiltToc(Toc(header, SpanTable.from_spans(spans), extents, members), windows_file)

    def _spans(self, roots: list[bytes]) -> tuple[list[Span], list[bytes]]:
        points = [p for p in self._points if p.uncompressed_start < self._produced]
        ends = [(p.uncompressed_start, p.previous_end) for p in points[1:]]
        ends.append((self._produced, self._compressed_size))
        spans, windows = [], []
        window_at = 0
        for number, (point, (end, compressed_end)) in enumerate(zip(points, ends, strict=False)):
            window = self._windows.get(point.uncompressed_start, b"")
            windows.append(window)
            spans.append(
                Span(
                    number=number,
                    uncompressed_start=point.uncompressed_start,
                    uncompressed_end=end,
                    compressed_start=point.compressed_start,
                    compressed_end=compressed_end,
                    entry=point.entry,
                    bits=point.bits,
                    skip=point.skip,
                    window_start=window_at,
                    window_end=window_at + len(window),
                    first_leaf=0,  # the table counts leaves itself
                    root=roots[number],
                )
            )
            window_at += len(window)
        return spans, windows


class _Content:
    """What is learned from the uncompressed bytes."""

    def __init__(self, limits: Limits, store: Store | None) -> None:
        self.parser: Final = TarParser(max_members=limits.max_members)
        self.roots: Final[list[bytes]] = []
        self.diff_id = ""
        self._store = store
        self._hash = sha256()
        self._leaves: list[bytes] = []
        self._partial = b""

    def take(self, piece: bytes | None) -> None:
        """The next bytes, or None where a span ends."""
        if piece is None:
            self._end_span()
            return
        self._hash.update(piece)
        self.parser.feed(piece)
        self._hash_leaves(piece)
        if self._store is not None:
            self._store(piece)

    def close(self) -> Self:
        if self._leaves or self._partial:
            self._end_span()
        self.parser.close()
        self.diff_id = "sha256:" + self._hash.hexdigest()
        return self

    def _hash_leaves(self, piece: bytes) -> None:
        view = memoryview(piece)
        if self._partial:
            missing = LEAF_SIZE - len(self._partial)
            self._partial += view[:missing]
            view = view[missing:]
            if len(self._partial) < LEAF_SIZE:
                return
            self._leaves.append(sha256(self._partial).digest())
        whole = len(view) // LEAF_SIZE * LEAF_SIZE
        append = self._leaves.append
        for start in range(0, whole, LEAF_SIZE):
            append(sha256(view[start : start + LEAF_SIZE]).digest())
        self._partial = bytes(view[whole:])

    def _end_span(self) -> None:
        if self._partial:
            self._leaves.append(sha256(self._partial).digest())
            self._partial = b""
        self.roots.append(merkle_root(self._leaves))
        self._leaves = []


class _SecondThread:
    """Hands pieces to `content.take` on its own thread; errors come out at the next `put` or `join`."""

    def __init__(self, content: _Content) -> None:
        self._content = content
        self._queue: queue.Queue[bytes | _End | None] = queue.Queue(_QUEUE_LENGTH)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="layer content", daemon=True)
        self._thread.start()

    def put(self, piece: bytes | None) -> None:
        if self._error is not None:
            self.join()
        self._queue.put(piece)

    def join(self) -> None:
        self.stop()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """End the thread; what it has not taken yet is taken still."""
        if self._thread.is_alive():
            self._queue.put(_END)
            self._thread.join()

    def _run(self) -> None:
        while not isinstance(piece := self._queue.get(), _End):
            if self._error is not None:
                continue  # keep the queue moving, so that nobody waits at `put`
            try:
                self._content.take(piece)
            except BaseException as error:  # noqa: BLE001  # raised again on the caller's thread
                self._error = error


class _End:
    """Marks the end of the queue."""


_END: Final = _End()
