"""Sparse windows: of the 32 KiB before a checkpoint, only the bytes that later data refers to.

A reference reaches back 32 KiB at most, so only the first 32 KiB after the checkpoint can refer to the
window itself; what comes later refers to that output. These are inflated twice with windows made of marks:
the first holds the low byte of each position, the second the high bits and, lowest, the opposite of the
position's lowest bit. A byte copied from the window so gives two that differ and tell its position; any
other byte gives two equal ones, which are no position's marks.
"""

from typing import Final

import numpy as np

from indexer.errors import FormatError
from indexer.libz import RawInflater

WINDOW_SIZE: Final = 32768

_POSITIONS: Final = np.arange(WINDOW_SIZE, dtype=np.uint16)
_LOW: Final = (_POSITIONS & 0xFF).astype(np.uint8)
_HIGH: Final = (_POSITIONS >> 8 << 1 | ~_POSITIONS & 1).astype(np.uint8)
_MARKS: Final = (_LOW.tobytes(), _HIGH.tobytes())
_PAIRS: Final = (_LOW.astype(np.intp) << 8) | _HIGH
"""What a position's two marks are as one number."""


class WindowSieve:
    """Finds what of a window is used, again and again in the same memory."""

    def __init__(self) -> None:
        self._inflaters = (RawInflater(WINDOW_SIZE), RawInflater(WINDOW_SIZE))
        low, high = (np.frombuffer(inflater.buffer, np.uint8) for inflater in self._inflaters)
        self._low, self._high = low, high

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
            produced = [
                inflater.resume(data, bits, marks[:size])
                for inflater, marks in zip(self._inflaters, _MARKS, strict=True)
            ]
        except FormatError:
            return window  # damage is for the inflater of the whole stream to report
        count = min(produced)
        used = np.zeros(1 << 16, np.uint8)
        used[(self._low[:count].astype(np.intp) << 8) | self._high[:count]] = 1
        mask = used[_PAIRS[:size]]
        first = int(mask.argmax()) if size else 0
        if not mask[first:].any():
            return b""
        return bytes(np.frombuffer(window, np.uint8)[first:] * mask[first:])
