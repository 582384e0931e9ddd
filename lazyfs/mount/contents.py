"""Reads of layers' bytes, each under one deadline."""

import errno
from collections.abc import Mapping, Sequence
from typing import Protocol

import trio

from lazyfs.mount.errors import Refused, errno_of
from lazyfs.mount.failed_reads import FailedReads
from lazyfs.mount.partial_reads import PartialReads


class LayerReader(Protocol):
    """What a mount needs of a layer: checked bytes of its address space, padded with zeros to whole blocks.

    Ranges are never empty and never pass the padded end.
    """

    def read_nowait(self, start: int, size: int) -> bytes | memoryview | None:
        """Exactly bytes [start, start + size), or None unless all of them are on this machine.

        Called on the thread that answers all requests: it takes no longer than reading a cached file.
        """

    def has_some(self, start: int, size: int) -> bool:
        """Whether some of bytes [start, start + size) are on this machine, not only those around them."""

    async def read(self, start: int, size: int) -> bytes | memoryview:
        """Exactly bytes [start, start + size), fetched if need be. May be cancelled at any time.

        Raises:
            IndexerError: they are not what their digest promises.
            LazyfsError: they cannot be had.
        """


class Contents:
    """The layers of a mount.

    Attributes:
        layers: by number, whatever it counts.
        read_timeout_s: how long a reader waits at most.
    """

    def __init__(
        self,
        layers: Sequence[LayerReader] | Mapping[int, LayerReader],
        read_timeout_s: float,
        *,
        outlast_tasks: bool = False,
    ) -> None:
        """Nothing is read yet.

        Args:
            layers: see above.
            read_timeout_s: see above.
            outlast_tasks: a read under way is not cancelled with the task that asked, until `let_go`.
        """
        self.layers = layers
        self.read_timeout_s = read_timeout_s
        self._failed = FailedReads()
        self._partial = PartialReads()
        self._under_way: set[trio.CancelScope] = set()
        self._shield = outlast_tasks
        self._ending = False

    def __repr__(self) -> str:
        return f"<Contents of {len(self.layers)} layers, {len(self._under_way)} reads under way>"

    def read_nowait(self, number: int, start: int, size: int) -> bytes | memoryview | None:
        """Bytes [start, start + size) of the device of layer `number`; None unless all of them are here.

        Raises:
            Refused: what has just been answered to a read of them.
            LazyfsError: see `LayerReader.read`.
        """
        data = self.layers[number].read_nowait(start, size)
        if data is not None:
            return _checked(data, number, start, size)
        known = self._failed.errno(number, start)
        if known is not None:
            raise Refused(known)
        return None

    async def read(self, number: int, start: int, size: int) -> bytes | memoryview:
        """Bytes [start, start + size) of the device of layer `number`; without a checkpoint if all are here.

        Raises:
            Exception: those of `read_nowait` and `wait`.
        """
        data = self.read_nowait(number, start, size)
        return await self.wait(number, start, size) if data is None else data

    async def wait(self, number: int, start: int, size: int, *, whole: bool = False) -> bytes | memoryview:
        """Bytes that `read_nowait` does not give, fetched if need be.

        Args:
            number: of the layer.
            start: see `LayerReader.read`.
            size: see `LayerReader.read`.
            whole: whether somebody wants all of it: the kernel would not ask again for a part.

        Raises:
            trio.TooSlowError: they did not come in time.
            Refused: ENOTCONN, after `refuse`; EIO for a read that had better be asked for by pages.
            IndexerError: see `LayerReader.read`.
            LazyfsError: see `LayerReader.read`.
        """
        patience_s = self.read_timeout_s if whole else self._patience_s(number, start, size)
        try:
            data = await self._read_within(patience_s, self.layers[number], start, size)
        except Refused:
            raise
        except Exception as error:
            self._partial.failed(number)
            if patience_s < self.read_timeout_s and isinstance(error, trio.TooSlowError):
                self._partial.given_up(number, start, size)
                raise Refused(errno.EIO) from error
            self._failed.add(number, start, size, errno_of(error) or errno.EIO)
            raise
        self._partial.brought(number)
        return _checked(data, number, start, size)

    def _patience_s(self, number: int, start: int, size: int) -> float:
        """How long a read waits: not for ever for pages that are not here, where some are."""
        patience_s = self._partial.patience_s(number, start, size)
        if patience_s < self.read_timeout_s and self.layers[number].has_some(start, size):
            return patience_s
        return self.read_timeout_s

    async def _read_within(
        self, patience_s: float, layer: LayerReader, start: int, size: int
    ) -> bytes | memoryview:
        deadline = trio.current_time() + patience_s
        with trio.CancelScope(deadline=deadline, shield=self._shield) as scope:
            self._under_way.add(scope)
            try:
                if not self._ending and patience_s > 0:
                    return await layer.read(start, size)
            finally:
                self._under_way.discard(scope)
        if self._ending:
            raise Refused(errno.ENOTCONN)
        raise trio.TooSlowError(f"no answer within {patience_s:g} s")

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


def _checked(data: bytes | memoryview, number: int, start: int, size: int) -> bytes | memoryview:
    """`data`, of the right length: the kernel would take less for the file's end, or show zeros."""
    if len(data) != size:
        raise RuntimeError(f"layer {number} gave {len(data)} bytes of [{start}, {start + size})")
    return data
