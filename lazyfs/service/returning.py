"""A layer that was being read when the daemon died: its readers wait until the next one has it open again."""

import trio

from lazyfs.mount.contents import LayerReader


class Returning:
    """A `contents.LayerReader` that becomes another.

    Attributes:
        opens: how often the kernel has its file open.
    """

    def __init__(self, opens: int) -> None:
        self.opens = opens
        self._reader: LayerReader | None = None
        self._error: Exception | None = None
        self._settled = trio.Event()
        self._changed = trio.lowlevel.ParkingLot()

    def __repr__(self) -> str:
        return f"<Returning {self._reader or self._error or 'soon'}, open {self.opens} times>"

    def become(self, reader: LayerReader) -> None:
        """Read by this from now on."""
        self._reader = reader
        self._settled.set()

    def fail(self, error: Exception) -> None:
        """Tell readers so, until it becomes something."""
        self._error = error
        self._settled.set()

    def count(self, change: int) -> None:
        """The kernel has opened it, or closed it for good."""
        self.opens += change
        self._changed.unpark_all()

    async def wait_closed(self) -> None:
        """Wait until nobody has it open."""
        while self.opens > 0:
            await self._changed.park()

    def read_nowait(self, start: int, size: int) -> bytes | memoryview | None:
        """As LayerReader.read_nowait says."""
        return self._reader.read_nowait(start, size) if self._reader else None

    def has_some(self, start: int, size: int) -> bool:
        """As LayerReader.has_some says."""
        return self._reader is not None and self._reader.has_some(start, size)

    async def read(self, start: int, size: int) -> bytes | memoryview:
        """As LayerReader.read says; also raises why the layer cannot be opened again."""
        await self._settled.wait()
        if self._reader is not None:
            return await self._reader.read(start, size)
        assert self._error is not None
        raise self._error
