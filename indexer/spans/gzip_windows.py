"""Sparse windows: of the 32 KiB before a checkpoint, only the bytes that later data refers to.

A reference reaches back 32 KiB at most, so only the first 32 KiB after the checkpoint can refer to the
window itself; what comes later refers to that output. These are inflated twice with windows made of marks:
the first holds the low byte of each position, the second the high bits and, lowest, the opposite of the
position's lowest bit. A byte copied from the window so gives two that differ and tell its position; any
other byte gives two equal ones.
"""

from typing import Final

import numpy as np

from indexer.errors import FormatError
from indexer.spans.libz import WINDOW_SIZE, RawInflater

_POSITIONS: Final = np.arange(WINDOW_SIZE, dtype=np.uint16)
_LOW: Final = (_POSITIONS & 0xFF).astype(np.uint8).tobytes()
_HIGH: Final = (_POSITIONS >> 8 << 1 | ~_POSITIONS & 1).astype(np.uint8).tobytes()


class WindowSieve:
    """Finds what of a window is used, again and again in the same memory."""

    def __init__(self) -> None:
        self._low_inflater = RawInflater(WINDOW_SIZE)
        self._high_inflater = RawInflater(WINDOW_SIZE)
        self._low = np.frombuffer(self._low_inflater.buffer, np.uint8)
        self._high = np.frombuffer(self._high_inflater.buffer, np.uint8)

    def sparse(self, window: bytes, data: bytes, bits: int) -> bytes:
        """The part of `window` that `data` refers to, other bytes zero, unused bytes in front dropped.

        Args:
            window: up to 32 KiB of output before the checkpoint.
            data: compressed bytes from the checkpoint on (with the shared byte first if bits is not 0),
                enough for 32 KiB of output or up to the end of the deflate stream.
            bits: how many top bits of the first byte belong to the block.
        """
        size = len(window)
        try:
            count = self._low_inflater.resume(data, bits, _LOW[:size])
            self._high_inflater.resume(data, bits, _HIGH[:size])
        except FormatError:
            return window  # damage is for the inflater of the whole stream to report
        low, high = self._low[:count], self._high[:count]
        copied = np.flatnonzero(low != high)
        positions = (high[copied].astype(np.intp) >> 1 << 8) | low[copied]
        if not positions.size:
            return b""
        first = int(positions.min())
        used = np.zeros(size, np.uint8)
        used[positions] = 1
        return bytes(np.frombuffer(window, np.uint8)[first:] * used[first:])
