"""Reads of layers' bytes, each under one deadline."""

import errno
from collections.abc import Mapping, Sequence
from typing import Protocol

import trio
from pyfuse3 import FUSEError

from lazyfs.mount.errors import errno_of
from lazyfs.mount.failed_reads import FailedReads


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

    A read under way is not cancelled with the task that asked, until `let_go`: pyfuse3 may give up its tasks
    while the mount goes on (`session`), and nobody else would answer that reader.

    Attributes:
        layers: by number, whatever it counts.
        read_timeout_s: how long a reader waits at most.
    """

    def __init__(
        self, layers: Sequence[LayerReader] | Mapping[int, LayerReader], read_timeout_s: float
    ) -> None:
        self.layers = layers
        self.read_timeout_s = read_timeout_s
        self._failed = FailedReads()
        self._under_way: set[trio.CancelScope] = set()
        self._shield = True
        self._ending = False

    def __repr__(self) -> str:
        return f"<Contents of {len(self.layers)} layers, {len(self._under_way)} reads under way>"

    async def read(self, number: int, start: int, size: int) -> bytes | memoryview:
        """Bytes [start, start + size) of the device of layer `number`; without a checkpoint if all are here.

        Raises:
            trio.TooSlowError: they did not come in time.
            FUSEError: what has just been answered to a read of them; or ENOTCONN, after `refuse`.
            IndexerError: see `LayerReader.read`.
            LazyfsError: see `LayerReader.read`.
        """
        layer = self.layers[number]
        data = layer.read_nowait(start, size)
        if data is None:
            known = self._failed.errno(number, start)
            if known is not None:
                raise FUSEError(known)
            try:
                data = await self._read_in_time(layer, start, size)
            except FUSEError:
                raise
            except Exception as error:
                self._failed.add(number, start, size, errno_of(error) or errno.EIO)
                raise
        if len(data) != size:  # the kernel would show zeros instead
            raise RuntimeError(f"layer {number} gave {len(data)} bytes of [{start}, {start + size})")
        return data

    async def _read_in_time(self, layer: LayerReader, start: int, size: int) -> bytes | memoryview:
        deadline = trio.current_time() + self.read_timeout_s
        with trio.CancelScope(deadline=deadline, shield=self._shield) as scope:
            self._under_way.add(scope)
            try:
                if not self._ending:
                    return await layer.read(start, size)
            finally:
                self._under_way.discard(scope)
        if self._ending:
            raise FUSEError(errno.ENOTCONN)
        raise trio.TooSlowError(f"no answer within {self.read_timeout_s:g} s")

    def try_again(self, number: int, start: int, end: int) -> None:
        """Forgets that reads of bytes [start, end) of a layer may have failed just now."""
        self._failed.forget(number, start, end)

    def refuse(self) -> None:
        """Answers every read that has to wait with ENOTCONN from now on, those under way at once.

        Unmounting EROFS waits for its reads.
        """
        self._ending = True
        for scope in self._under_way:
            scope.cancel()

    def let_go(self) -> None:
        """Lets reads be cancelled with the tasks that ask, those under way and all to come."""
        self._shield = False
        for scope in self._under_way:
            scope.shield = False
