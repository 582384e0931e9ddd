"""Sparse windows: of the 32 KiB before a checkpoint, only the bytes that later data refers to.

A reference reaches back 32 KiB at most, so only the first 32 KiB after the checkpoint can refer to the
window itself; what comes later refers to that output. Inflating these with windows made of position marks
shows which positions were copied: one window holds each position's low byte, the second its high byte, the
third the high byte with bit 7 set. Output that differs between the last two was copied from the window.
"""

from typing import Final

import numpy as np

from indexer.deflate_resume import resume
from indexer.errors import FormatError

WINDOW_SIZE: Final = 32768

_POSITIONS = np.arange(WINDOW_SIZE, dtype=np.uint16)
_LOW: Final = (_POSITIONS & 0xFF).astype(np.uint8).tobytes()
_HIGH: Final = (_POSITIONS >> 8).astype(np.uint8).tobytes()
_HIGH_MARKED: Final = ((_POSITIONS >> 8) | 0x80).astype(np.uint8).tobytes()


def sparse_window(window: bytes, data: bytes, bits: int) -> bytes:
    """The part of `window` that `data` refers to, other bytes zero, unused bytes in front dropped.

    Args:
        window: up to 32 KiB of output before the checkpoint.
        data: compressed bytes from the checkpoint on (with the shared byte first if bits is not 0), enough
            for 32 KiB of output or up to the end of the deflate stream.
        bits: how many top bits of the first byte belong to the block.
    """
    size = len(window)
    try:
        low, high, marked = (
            np.frombuffer(resume(data, bits, marks[:size], WINDOW_SIZE), np.uint8)
            for marks in (_LOW, _HIGH, _HIGH_MARKED)
        )
    except FormatError:
        return window  # damage is for the inflater of the whole stream to report
    copied = high != marked
    positions = (high[copied].astype(np.uint16) << 8) | low[copied]
    if not positions.size:
        return b""
    sparse = np.zeros(size, np.uint8)
    sparse[positions] = np.frombuffer(window, np.uint8)[positions]
    return sparse[int(positions.min()) :].tobytes()
