"""What the scanners of all compressions share: they take compressed bytes and tell output and checkpoints."""

from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from msgspec import Struct

from indexer.errors import LimitExceeded
from indexer.toc import Entry

MIN_SPAN_SIZE: Final = 32 << 10
"""Uncompressed bytes per span that may be aimed at: a span is not smaller than a window."""

_MOST_UNUSED: Final = 128 << 20


def most_compressed(size: int) -> int:
    """How many compressed bytes may lie between a span's entry and its end, for `size` bytes of output there.

    Any number of blocks, members and frames have no output, and who reads the span has them in memory.
    """
    return _MOST_UNUSED + 2 * size


class Checkpoint(NamedTuple):
    """Where a span begins.

    Attributes:
        uncompressed_start: first byte of the span.
        compressed_start: first compressed byte needed to enter it.
        previous_end: end of the compressed bytes that the span before may need.
        entry: how decompression begins here.
        bits: for DEFLATE, how many top bits of the first byte count; 0 for whole bytes.
        skip: decompressed bytes between the entry and the span's start.
    """

    uncompressed_start: int
    compressed_start: int
    previous_end: int
    entry: Entry
    bits: int = 0
    skip: int = 0


class Receiver(Protocol):
    """What a scanner reports to, in stream order."""

    def output(self, data: bytes) -> None:
        """The next uncompressed bytes."""

    def checkpoint(self, point: Checkpoint) -> None:
        """A span begins right after the output so far."""

    def window(self, uncompressed_start: int, sparse: Callable[[], bytes]) -> None:
        """The sparse window of the checkpoint at `uncompressed_start` can be had; comes some output later.

        `sparse` may be called on any thread, but on one at a time.
        """


class Scanner(Protocol):
    """Decompresses a layer and finds its checkpoints, at least `span_size` bytes of output apart."""

    def feed(self, data: bytes) -> None:
        """Take the next compressed bytes, cut anywhere."""

    def close(self) -> None:
        """The input has ended.

        Raises:
            FormatError: it ended too early.
        """


class Limits(Struct, frozen=True):
    """Bounds against decompression bombs and other greed.

    Attributes:
        max_uncompressed: bytes of one layer.
        max_ratio: uncompressed bytes per compressed byte, for layers above `ratio_floor`.
        ratio_floor: uncompressed bytes from which the ratio counts.
        max_members: entries of one layer.
    """

    max_uncompressed: int = 1 << 40
    max_ratio: int = 200
    ratio_floor: int = 128 << 20
    max_members: int = 4_000_000

    def allowance(self, compressed_size: int) -> int:
        """How many bytes a layer of `compressed_size` bytes may become."""
        return min(self.max_uncompressed, max(self.ratio_floor, self.max_ratio * compressed_size))


def bounded(limits: Limits, compressed_size: int) -> Callable[[int], None]:
    """A check of how much a layer has become so far, cheap enough for every piece of output.

    Raises:
        LimitExceeded: (from the check) too much; it names the key of lazyfs' configuration that counts.
    """
    allowance = limits.allowance(compressed_size)
    setting = "max_layer_gib" if allowance == limits.max_uncompressed else "max_ratio"

    def check(size: int) -> None:
        if size > allowance:
            raise LimitExceeded(
                f"a layer of {compressed_size} bytes becomes more than {allowance} bytes: "
                f"a decompression bomb; for an image that you trust, raise {setting}"
            )

    return check
