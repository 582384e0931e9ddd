"""Builds a layer's Toc while its bytes stream by.

Two threads share the work about equally. The caller's inflates, finds checkpoints, and makes the diffID and
the spans' BLAKE3 digests: few, long calls without the GIL. A second one does what wants the GIL again and
again, leaves, windows and tar, and what else there is. Where both want the GIL, the one that wants it back
waits longer than small pieces take: so all the small ones are one thread's, and few, large ones are handed
over.
"""

import queue
import threading
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from typing import Final, Self

from msgspec import Struct

from indexer.digest import LEAF_SIZE, content_hasher, merkle_root, sha256_digest
from indexer.errors import DigestMismatch, FormatError, LimitExceeded, Unsupported
from indexer.spans.by_compression import SNIFF_SIZE, make_scanner, sniff
from indexer.spans.scan import MIN_SPAN_SIZE, Checkpoint, Limits, Scanner, bounded, most_compressed
from indexer.tar.stream import TarParser
from indexer.toc import AddressSpace, Compression, Entry, Span, SpanTable, Toc, TocHeader
from indexer.toc_codec import WindowCompressor

DEFAULT_SPAN_SIZE: Final = 384 << 10
"""Uncompressed bytes per span aimed at; ARCHITECTURE.md has the measurements behind the number."""

_QUEUE_LENGTH: Final = 32

Store = Callable[[bytes], None]
_Job = Callable[[], object]


class BuiltToc(Struct, frozen=True):
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
        layer_digest: its digest, as its descriptor promises; None takes it as it is.
        span_size: uncompressed bytes per span to aim at, at least 32 KiB.
        limits: bounds against bombs.
        store: receives the uncompressed bytes in order, on the second thread.

    Raises:
        Unsupported: smaller spans.
    """

    def __init__(
        self,
        layer_size: int,
        layer_digest: str | None,
        *,
        span_size: int = DEFAULT_SPAN_SIZE,
        limits: Limits | None = None,
        store: Store | None = None,
    ) -> None:
        if span_size < MIN_SPAN_SIZE:
            raise Unsupported(f"spans of {span_size} bytes; they have at least {MIN_SPAN_SIZE}")
        limits = limits or Limits()
        self._layer_size = layer_size
        self._layer_digest = layer_digest
        self._span_size = span_size
        self._compressed_size = 0
        self._head = b""
        self._compression: Compression | None = None
        self._scanner: Scanner | None = None
        self._produced = 0
        self._check_size = bounded(limits, layer_size)
        self._points: list[Checkpoint] = []
        self._layer_hash = sha256()
        self._hash = sha256()
        self._span_hash = content_hasher()
        self._blake3s: list[bytes] = []
        self._content = _Content(limits, store)
        self._second = _SecondThread()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._second.stop()

    def feed(self, data: bytes) -> None:
        """Take the next compressed bytes, cut anywhere.

        Raises:
            IndexerError: the layer is damaged, too large, or of a kind that is not read here.
        """
        self._compressed_size += len(data)
        if self._compressed_size > self._layer_size:
            raise FormatError(f"layer is longer than the {self._layer_size} bytes its descriptor promises")
        self._second.put(partial(self._layer_hash.update, data))
        if self._scanner is None:
            self._head += data
            if len(self._head) < SNIFF_SIZE:
                return
            data, self._head = self._head, b""
            self._begin(data)
        assert self._scanner is not None
        self._scanner.feed(data)
        self._check_span()

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
        self._second.wait()
        actual = "sha256:" + self._layer_hash.hexdigest()
        if self._layer_digest not in (actual, None):
            raise DigestMismatch("layer", str(self._layer_digest), actual)
        self._scanner.close()
        self._second.wait()
        return self._built(actual)

    def _begin(self, head: bytes) -> None:
        self._compression = sniff(head)
        self._scanner = make_scanner(self._compression, self, self._span_size)

    def output(self, data: bytes) -> None:
        """From the scanner: the next uncompressed bytes."""
        self._produced += len(data)
        self._check_size(self._produced)
        self._second.put(partial(self._content.take, data))
        self._hash.update(data)
        self._span_hash.update(data)

    def checkpoint(self, point: Checkpoint) -> None:
        """From the scanner: a span begins here."""
        if self._points:
            self._second.put(self._content.end_span)
            self._end_span()
        self._points.append(point)

    def window(self, uncompressed_start: int, sparse: Callable[[], bytes]) -> None:
        """From the scanner: what gives the sparse window of an earlier checkpoint."""
        self._second.put(partial(self._content.take_window, uncompressed_start, sparse))

    def _check_span(self) -> None:
        """The span at hand does not take more and more compressed bytes without content."""
        point = self._points[-1] if self._points else Checkpoint(0, 0, 0, Entry.RAW)
        size = self._compressed_size - point.compressed_start
        if size > most_compressed(self._produced - point.uncompressed_start + point.skip):
            raise LimitExceeded(f"a layer with {size} compressed bytes in a row that hold next to nothing")

    def _end_span(self) -> None:
        self._blake3s.append(self._span_hash.digest())
        self._span_hash = content_hasher()

    def _built(self, layer_digest: str) -> BuiltToc:
        content = self._content.close()
        self._end_span()
        spans, windows = self._spans(content)
        windows_file = b"".join(windows)
        assert self._compression is not None
        header = TocHeader(
            layer_digest=layer_digest,
            layer_size=self._layer_size,
            diff_id="sha256:" + self._hash.hexdigest(),
            uncompressed_size=self._produced,
            device_size=content.parser.device_size,
            compression=self._compression,
            address_space=AddressSpace.TAR,
            span_size=self._span_size,
            windows_digest=sha256_digest(windows_file),
        )
        members, extents = content.parser.members, tuple(content.parser.extents)
        return BuiltToc(Toc(header, SpanTable.from_spans(spans), extents, members), windows_file)

    def _spans(self, content: "_Content") -> tuple[list[Span], list[bytes]]:
        points = [p for p in self._points if p.uncompressed_start < self._produced]
        ends = [(p.uncompressed_start, p.previous_end) for p in points[1:]]
        ends.append((self._produced, self._compressed_size))
        spans, windows = [], []
        window_at = 0
        for number, (point, (end, compressed_end)) in enumerate(zip(points, ends, strict=False)):
            window = content.windows.get(point.uncompressed_start, b"")
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
                    root=content.roots[number],
                    blake3=self._blake3s[number],
                )
            )
            window_at += len(window)
        return spans, windows


class _Content:
    """What is learned from the bytes, on the second thread."""

    def __init__(self, limits: Limits, store: Store | None) -> None:
        self.parser: Final = TarParser(max_members=limits.max_members)
        self.roots: Final[list[bytes]] = []
        self.windows: Final[dict[int, bytes]] = {}
        self._store = store
        self._compress_window = WindowCompressor()
        self._leaves: list[bytes] = []
        self._partial = b""

    def take(self, piece: bytes) -> None:
        """The next uncompressed bytes."""
        self.parser.feed(piece)
        self._hash_leaves(piece)
        if self._store is not None:
            self._store(piece)

    def take_window(self, uncompressed_start: int, sparse: Callable[[], bytes]) -> None:
        """The sparse window of the span that starts there."""
        self.windows[uncompressed_start] = self._compress_window(sparse())

    def end_span(self) -> None:
        """The uncompressed bytes so far end a span."""
        if self._partial:
            self._leaves.append(sha256(self._partial).digest())
            self._partial = b""
        self.roots.append(merkle_root(self._leaves))
        self._leaves = []

    def close(self) -> Self:
        """There are no more bytes."""
        if self._leaves or self._partial:
            self.end_span()
        self.parser.close()
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


class _SecondThread:
    """Does jobs in order on a thread of its own; an error comes out at the next `put` or `wait`."""

    def __init__(self) -> None:
        self._jobs: queue.Queue[_Job | None] = queue.Queue(_QUEUE_LENGTH)
        self._error: BaseException | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="layer content", daemon=True)
        self._thread.start()

    def put(self, job: _Job) -> None:
        """Have it done; waits while too many are waiting."""
        self._raise_error()
        self._jobs.put(job)

    def wait(self) -> None:
        """Until all jobs are done."""
        self._jobs.join()
        self._raise_error()

    def stop(self) -> None:
        """End the thread, at once but for the job it is at: nobody wants what waits."""
        self._stopped = True
        self._jobs.put(None)
        self._thread.join()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                if self._error is None and not self._stopped:  # else only so that nobody waits at `put`
                    job()
            except BaseException as error:  # noqa: BLE001  # raised again on the caller's thread
                self._error = error
            self._jobs.task_done()
            del job  # it holds a large piece
