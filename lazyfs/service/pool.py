"""Things that are expensive to open: opened once for all who need them, closed when nobody has for a while.

Each lives in a task of its own, so that it outlives whoever asked first.
"""

import logging
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Generic, TypeVar

import trio

from indexer.errors import IndexerError
from lazyfs.errors import LazyfsError, Unreachable

_log = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

Opener = Callable[[], AbstractAsyncContextManager[V]]
"""Opens a thing; may raise IndexerError or LazyfsError, which all who wait for it get."""


class _Member(Generic[V]):
    """One thing.

    Attributes:
        ready: set once it is open, or cannot be opened.
        value: the thing, while it is open.
        error: why it cannot be opened.
        users: how many need it.
        changed: where changes of `users` are waited for.
    """

    def __init__(self) -> None:
        self.ready = trio.Event()
        self.value: list[V] = []
        self.error: Exception = Unreachable("shutting down")
        self.users = 0
        self.changed = trio.lowlevel.ParkingLot()

    def count(self, change: int) -> None:
        self.users += change
        self.changed.unpark_all()

    async def wait_unused(self, idle_s: float) -> None:
        """Wait until nobody has needed it for so many seconds."""
        while True:
            while self.users:
                await self.changed.park()
            with trio.move_on_after(idle_s):
                while not self.users:
                    await self.changed.park()
            if not self.users:
                return


class Pool(Generic[K, V]):
    """Open things by key.

    Args:
        nursery: where they live.
        idle_s: for how many seconds a thing that nobody needs stays open.
        another: gives another key of a thing that is open, unless something else has that.
    """

    def __init__(self, nursery: trio.Nursery, idle_s: float, another: Callable[[V], K] | None = None) -> None:
        self._another = another
        self._nursery = nursery
        self._idle_s = idle_s
        self._members: dict[K, _Member[V]] = {}

    def __repr__(self) -> str:
        members = set(self._members.values())
        return f"<Pool of {len(members)}, {sum(member.users > 0 for member in members)} in use>"

    def __contains__(self, key: K) -> bool:
        """Whether the thing with this key is open, or being opened."""
        return key in self._members

    def get(self, key: K) -> V | None:
        """The thing with this key, if it is open."""
        member = self._members.get(key)
        return member.value[0] if member is not None and member.value else None

    def open_values(self) -> list[V]:
        """The things that are open."""
        members = dict.fromkeys(self._members.values())
        return [value for member in members for value in member.value]

    @asynccontextmanager
    async def lease(self, key: K, opener: Opener[V]) -> AsyncIterator[V]:
        """The thing with this key, opened if need be, and open for at least as long as the block lasts.

        Raises:
            IndexerError, LazyfsError: from `opener`.
        """
        member = self._members.get(key)
        if member is None:
            member = self._members[key] = _Member()
            self._nursery.start_soon(self._keep_open, member, opener)
        member.count(1)
        try:
            await member.ready.wait()
            if not member.value:
                raise member.error
            yield member.value[0]
        finally:
            member.count(-1)

    def count(self, key: K, change: int) -> None:
        """Changes the number of those who need an open thing, beside those that lease it."""
        self._members[key].count(change)

    def renew(self, key: K) -> None:
        """Opens another thing for those who come from now on; the open one goes with its users."""
        if key in self._members:
            self._drop(self._members[key])

    async def _keep_open(self, member: _Member[V], opener: Opener[V]) -> None:
        try:
            async with opener() as value:
                member.value.append(value)
                if self._another is not None and member in self._members.values():
                    self._members.setdefault(self._another(value), member)
                member.ready.set()
                await member.wait_unused(self._idle_s)
                self._drop(member)  # before it is closed: who comes now opens another
        except (IndexerError, LazyfsError) as error:
            self._failed(member, error)
        except Exception as error:  # noqa: BLE001  # it must reach who waits, not end the daemon
            _log.exception("a bug")
            self._failed(member, LazyfsError(f"a bug: {type(error).__name__}; the log has its trace"))
        finally:
            self._drop(member)
            member.ready.set()

    def _drop(self, member: _Member[V]) -> None:
        for key in [key for key, each in self._members.items() if each is member]:
            del self._members[key]

    def _failed(self, member: _Member[V], error: Exception) -> None:
        if member.value:
            _log.warning("closing: %s", error)
        else:
            member.error = error
