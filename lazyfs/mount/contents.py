"""Reads of layers' bytes, each under one deadline."""

from collections.abc import Sequence
from typing import Protocol

import trio


class LayerReader(Protocol):
    """What a mount needs of a layer: checked bytes of its address space, padded with zeros to whole blocks.

    Ranges are never empty and never pass the padded end.
    """

    def read_nowait(self, start: int, size: int) -> bytes | memoryview | None:
        """Exactly bytes [start, start + size), or None unless all of them are on this machine.

        Called on the thread that answers all requests: it takes no longer than reading a cached file.
        """

    async def read(self, start: int, size: int) -> bytes | memoryview:
        """Exactly bytes [start, start + size), fetched if need be. May be cancelled at any time.

        Raises:
            IndexerError: they are not what their digest promises.
            LazyfsError: they cannot be had.
        """


class Contents:
    """The layers of a mount.

    Attributes:
        layers: by number.
        read_timeout_s: how long a reader waits at most.
    """

    def __init__(self, layers: Sequence[LayerReader], read_timeout_s: float) -> None:
        self.layers = layers
        self.read_timeout_s = read_timeout_s

    async def read(self, number: int, start: int, size: int) -> bytes | memoryview:
        """Bytes [start, start + size) of the device of layer `number`; without a checkpoint if all are here.

        Raises:
            trio.TooSlowError: they did not come in time.
            IndexerError: see `LayerReader.read`.
            LazyfsError: see `LayerReader.read`.
        """
        layer = self.layers[number]
        data = layer.read_nowait(start, size)
        if data is None:
            with trio.move_on_after(self.read_timeout_s):
                data = await layer.read(start, size)
        if data is None:
            raise trio.TooSlowError(f"no answer within {self.read_timeout_s:g} s")
        if len(data) != size:  # the kernel would show zeros instead
            raise RuntimeError(f"layer {number} gave {len(data)} bytes of [{start}, {start + size})")
        return data
