"""What the readers of a mount touch first, in order: recorded always, for a fraction of a microsecond a read.

A trace speaks of bytes of the layers' address spaces, so that it outlives the table of contents it was
recorded under. Blocks of 512 bytes are told apart: what readers ask for begins and ends on their boundaries.
"""

import json
import mmap
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from msgspec import Struct

from indexer.boot_pack import PackLayer
from indexer.digest import digest_hex
from indexer.errors import FormatError, LimitExceeded, Unsupported
from indexer.toc import BLOCK_SIZE, Extent
from lazyfs.image.reading.plan import tail_pieces, tail_runs

MAX_TOUCHES: Final = 1 << 18
MAX_TRACE: Final = 32 << 20
"""Bytes of an encoded trace."""

_VERSION: Final = 1
_MAX_LAYERS: Final = 1000
_MAX_OFFSET: Final = 1 << 62
_FIELDS: Final = 4
_MAP_NORESERVE: Final = 0x4000  # mmap(2); `mmap` does not name it before Python 3.13
_COSTS_NOTHING: Final = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE


def sparse_memory(size: int) -> mmap.mmap:
    """So many bytes, all zero, of which only those cost something that are written."""
    return mmap.mmap(-1, size, _COSTS_NOTHING)


class Touch(NamedTuple):
    """Bytes that were read for the first time.

    Attributes:
        layer: number of the layer in the trace.
        start: first byte in the layer's address space.
        end: their end.
        at_us: microseconds since the trace began.
    """

    layer: int
    start: int
    end: int
    at_us: int


class Trace(Struct, frozen=True):
    """First touches of an image's content.

    Attributes:
        image: the image's name.
        manifest: digest of its manifest.
        precise: whether the kernel read little ahead, so that hardly more is told than was wanted.
        command: the program that ran, without its arguments, where that is known; "" else.
        began: when, in seconds since 1970.
        layers: by number.
        touches: in order.
    """

    image: str
    manifest: str
    precise: bool
    command: str
    began: float
    layers: tuple[PackLayer, ...]
    touches: tuple[Touch, ...]

    @property
    def size(self) -> int:
        """Bytes that were touched."""
        return sum(touch.end - touch.start for touch in self.touches)

    def as_json(self) -> dict[str, Any]:
        """The trace as JSON has it."""
        return {
            "version": _VERSION,
            "image": self.image,
            "manifest": self.manifest,
            "precise": self.precise,
            "command": self.command,
            "began": self.began,
            "layers": [{"digest": layer, "toc": toc} for layer, toc in self.layers],
            "touches": [list(touch) for touch in self.touches],
        }

    def encode(self) -> bytes:
        """The trace as a document."""
        return json.dumps(self.as_json(), separators=(",", ":")).encode()


def decode_trace(data: bytes) -> Trace:
    """A trace from its document.

    Raises:
        FormatError: it is none.
        LimitExceeded: it is too long.
        Unsupported: it is of another version.
    """
    if len(data) > MAX_TRACE:
        raise LimitExceeded(f"a trace of {len(data)} bytes")
    try:
        return _decoded(json.loads(data))
    except (ValueError, TypeError, KeyError, RecursionError, AttributeError, OverflowError) as error:
        raise FormatError(f"not a trace: {error}") from error


def _decoded(values: dict[str, Any]) -> Trace:
    if values["version"] != _VERSION:
        raise Unsupported(f"a trace of version {values['version']!r}; this program reads {_VERSION}")
    layers = tuple(PackLayer(str(layer["digest"]), str(layer["toc"])) for layer in values["layers"])
    touches = tuple(Touch(*map(int, touch)) for touch in values["touches"])
    for digest in (str(values["manifest"]), *(digest for layer in layers for digest in layer)):
        digest_hex(digest)
    if len(layers) > _MAX_LAYERS or len(touches) > MAX_TOUCHES:
        raise LimitExceeded(f"a trace of {len(layers)} layers and {len(touches)} touches")
    for layer, start, end, at_us in touches:
        if not (0 <= layer < len(layers) and 0 <= start < end <= _MAX_OFFSET and 0 <= at_us <= _MAX_OFFSET):
            raise FormatError("a trace with an impossible touch")
    return Trace(
        image=str(values["image"]),
        manifest=str(values["manifest"]),
        precise=values["precise"] is True,
        command=str(values["command"]),
        began=float(values["began"]),
        layers=layers,
        touches=touches,
    )


class TracedLayer(NamedTuple):
    """What is recorded of a layer.

    Attributes:
        names: its digests.
        size: bytes of its stream.
        extents: its tail.
    """

    names: PackLayer
    size: int
    extents: Sequence[Extent]


class Tracer:
    """Records first touches of an image's layers.

    Args:
        image: the image's name.
        manifest: digest of its manifest.
        layers: its layers, the lowest first.
        precise: whether the kernel reads little ahead.
        clock: seconds of some clock.
    """

    def __init__(
        self,
        image: str,
        manifest: str,
        layers: Sequence[TracedLayer],
        *,
        precise: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._image = image
        self._manifest = manifest
        self._layers = tuple(layers)
        self._precise = precise
        self._clock = clock
        self._began = clock()
        self._began_at = time.time()
        self._seen = [sparse_memory(layer.size // BLOCK_SIZE + 1) for layer in layers]
        self._touches = array("Q")
        self._size = 0

    def __repr__(self) -> str:
        return f"<Tracer, {len(self)} touches>"

    def __len__(self) -> int:
        return len(self._touches) // _FIELDS

    @property
    def size(self) -> int:
        """Bytes that were touched so far."""
        return self._size

    def note(self, number: int, start: int, end: int) -> None:
        """Bytes [start, end) of a layer's address space are read, which is not empty."""
        size = self._layers[number].size
        if end > size:
            for piece in self._in_stream(number, start, end):
                self.note(number, *piece)
            return
        seen = self._seen[number]
        first, last = start // BLOCK_SIZE, (end - 1) // BLOCK_SIZE + 1
        at = seen.find(b"\0", first, last)
        if at >= 0:
            self._append(number, max(start, at * BLOCK_SIZE), end)
            seen[at:last] = b"\1" * (last - at)

    def _in_stream(self, number: int, start: int, end: int) -> Iterator[tuple[int, int]]:
        """What of [start, end), which passes the stream's end, comes out of the stream."""
        layer = self._layers[number]
        if start < layer.size:
            yield start, layer.size
        for run in tail_runs(tail_pieces(layer.extents, max(start, layer.size), end)):
            yield run.start, run.end

    def _append(self, number: int, start: int, end: int) -> None:
        touches = self._touches
        if len(touches) and touches[-_FIELDS] == number and touches[2 - _FIELDS] == start:
            touches[2 - _FIELDS] = end
        elif len(touches) < MAX_TOUCHES * _FIELDS:
            touches.extend((number, start, end, int((self._clock() - self._began) * 1e6)))
        else:
            return
        self._size += end - start

    def trace(self, program: str = "") -> Trace:
        """What was recorded so far, while this program ran. Takes up to 0.5 s, in whatever thread."""
        touches = self._touches[:]  # in one step, as more may come
        return Trace(
            image=self._image,
            manifest=self._manifest,
            precise=self._precise,
            command=program,
            began=self._began_at,
            layers=tuple(layer.names for layer in self._layers),
            touches=tuple(Touch(*touches[at : at + _FIELDS]) for at in range(0, len(touches), _FIELDS)),
        )
