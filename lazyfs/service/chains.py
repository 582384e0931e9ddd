"""The mounts of chains: made once for all who order the same layers, kept until they are released.

A chain lives in a task of its own, which mounts it, says so, waits until it is to go, and unmounts it. What
is mounted stands in the ledger, from which the next daemon makes it again.

One that is released lingers: the next container finds it with all that the kernel has cached. A later daemon
of the same boot does not keep it, as nobody uses it; whoever orders it again gets it when it stands in the
ledger again.
"""

import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, Protocol

import trio
from msgspec import Struct
from msgspec.structs import replace

from indexer.errors import IndexerError
from lazyfs.errors import LazyfsError, MountError
from lazyfs.exit_codes import message_of
from lazyfs.mount.forest_mount import take_down
from lazyfs.oci.chain import ChainOrder, chain_name
from lazyfs.service.images import Images
from lazyfs.service.ledger import Entry
from lazyfs.service.protocol import order_fields

_log = logging.getLogger(__name__)

_REMADE_AT_ONCE: Final = 4
_TRY_AGAIN_S: Final = 30.0
_ANSWER_S: Final = 1.0
_LOOKS: Final = 4  # at mounts that may hang


NoteDevices = Callable[[Sequence[int]], Awaitable[None]]
"""Takes the numbers of the files that a tree is about to be mounted from; returns when that is on disk."""


class Driver(Protocol):
    """Presents trees."""

    def mounted(self, entry: Entry, mount_point: Path, note: NoteDevices) -> AbstractAsyncContextManager[str]:
        """Shows the ordered layers at a directory, if need be made, while the block lasts.

        Gives the name of the driver, as `lazyfs mount --driver` calls it.

        Raises:
            IndexerError: (on entry) they make no tree.
            LazyfsError: (on entry) they cannot be had or mounted; (at the end) unmounted.
        """


class _Chain:
    """One mount.

    Attributes:
        entry: what it shows, and whether it does.
        path: where.
        state: "live", or "remade" if it takes the place of one whose server is dead.
        ready: set once it is mounted, or cannot be.
        error: why it cannot be; None while it is mounted.
        leave: set when it is to go.
        gone: set when it is.
        noted: whether it is to be written down.
        released: when it was, by trio's clock, if nobody has ordered it since.
        turn: held while it is ordered again.
    """

    def __init__(self, entry: Entry, path: Path, state: str) -> None:
        self.entry = entry
        self.path = path
        self.state = state
        self.ready = trio.Event()
        self.error: Exception | None = MountError("shutting down")
        self.leave = trio.Event()
        self.gone = trio.Event()
        self.noted = False
        self.released: float | None = None
        self.turn = trio.Lock()


@asynccontextmanager
async def unmounted_at_end(mount_point: Path, driver: str) -> AsyncIterator[str]:
    """Unmounts what is at a directory after the block, lazily if it is in use, and removes the directory.

    Gives the driver's name.

    Raises:
        MountError: it cannot be unmounted.
    """
    try:
        yield driver
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(_take_away, mount_point)


def _take_away(mount_point: Path) -> None:
    take_down(mount_point)
    with suppress(OSError):  # it is not there, or holds what is none of ours
        mount_point.rmdir()


def _is_alive(mount_point: Path) -> bool:
    try:
        os.statvfs(mount_point)  # a dead FUSE refuses this, whatever the kernel remembers of its root
        return mount_point.stat().st_dev != mount_point.parent.stat().st_dev
    except OSError:
        return False


def make_mount_point(path: Path) -> None:
    """Make the directory for a mount, if it is not there.

    Raises:
        MountError: it cannot be made.
    """
    try:
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise MountError(f"cannot make {path}: {error.strerror}") from error


class Mounted(Struct, frozen=True):
    """The answer to an order.

    Attributes:
        name: of the mount.
        path: where it is.
        driver: who presents it.
    """

    name: str
    path: Path
    driver: str


class Chains:
    """All mounts.

    Args:
        nursery: where they live.
        images: where their layers are.
        driver: presents them.
        warm: hastens those reads of a mount, by name, that the next container is likely to begin with.
        directory: where they are mounted, each under its name.
        write_down: returns when `entries` is on disk.
        linger_s: for how long a mount that was released stays.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        images: Images,
        driver: Driver,
        warm: Callable[[str], None],
        directory: Path,
        write_down: Callable[[], Awaitable[None]],
        linger_s: float = 0.0,
    ) -> None:
        self._nursery = nursery
        self._images = images
        self._driver = driver
        self._warm = warm
        self._directory = directory
        self._write_down = write_down
        self._linger_s = linger_s
        self._chains: dict[str, _Chain] = {}
        self._stale: dict[str, tuple[Entry, str]] = {}
        self._looks = trio.CapacityLimiter(_LOOKS)

    def __repr__(self) -> str:
        return f"<Chains: {len(self._chains)} mounted, {len(self._stale)} stale>"

    def __contains__(self, name: str) -> bool:
        """Whether what has this name is mounted, about to be, or about to go."""
        return name in self._chains

    async def mount(self, order: ChainOrder) -> Mounted:
        """The mount of the ordered layers, made if there is none.

        Raises:
            IndexerError: something of the image is damaged.
            LazyfsError: it cannot be had or mounted.
        """
        async with self._images.lease(order) as image:
            layers = [layer.descriptor.digest for layer in image.lowest(order).layers]
            name = chain_name(layers, alone=order.alone)
            return await self._ensure(Entry(name, image.pinned(order)), "live")

    async def again(self, name: str) -> Mounted | None:
        """What has this name, if it is mounted and stays: no image is opened for it."""
        chain = self._chains.get(name)
        if chain is None or chain.error is not None or not await self._used(chain):
            return None
        return Mounted(name, chain.path, chain.entry.driver)

    async def _ensure(self, entry: Entry, state: str) -> Mounted:
        """The mount of an entry, made if there is none."""
        while True:
            chain = self._chains.get(entry.name)
            is_new = chain is None
            if chain is None:
                fresh = replace(entry, mounted=False, devices=(), again=entry.name in self._stale)
                chain = self._chains[entry.name] = _Chain(fresh, self._directory / entry.name, state)
                self._nursery.start_soon(self._mount, chain)
            await chain.ready.wait()
            if chain.error is not None:
                raise chain.error
            if await self._used(chain, is_new=is_new):
                return Mounted(entry.name, chain.path, chain.entry.driver)
            await chain.gone.wait()

    async def _used(self, chain: _Chain, *, is_new: bool = False) -> bool:
        """See that a mount stays, and is written down; False if it is going already, or to be made anew."""
        async with chain.turn:
            if not (is_new or chain.leave.is_set() or await self._answers(chain.path)):
                _log.warning("%s is not mounted any more, or dead: it is mounted anew", chain.path)
                chain.leave.set()
            if chain.leave.is_set():
                return False
            if chain.released is not None:
                chain.released = None
                self._warm(chain.entry.name)
                await self._write_down()
            return True

    async def _answers(self, mount_point: Path) -> bool:
        """Whether what we have mounted is there. One that is still being brought back is believed."""
        with trio.move_on_after(_ANSWER_S):
            return await trio.to_thread.run_sync(
                _is_alive, mount_point, abandon_on_cancel=True, limiter=self._looks
            )
        return True

    async def release(self, name: str) -> None:
        """Nobody uses what has this name, if anything does: unmount it, unless it is ordered again soon.

        Returns when that is written down, and done if it is done at once.
        """
        chain = self._chains.get(name)
        if not self._linger_s or chain is None or chain.error is not None:
            await self._release([name])
            return
        self._stale.pop(name, None)
        if chain.released is None:
            chain.released = trio.current_time()
            self._nursery.start_soon(self._linger, chain, chain.released)
        await self._write_down()

    async def _linger(self, chain: _Chain, released: float) -> None:
        """Unmount what was released then, unless somebody orders it meanwhile."""
        with trio.move_on_after(self._linger_s):
            await chain.gone.wait()
        if chain.released == released and not chain.gone.is_set():
            await self._release([chain.entry.name])

    async def order_as(self, name: str, orders: Sequence[ChainOrder]) -> None:
        """What has this name stands for one of these orders from now on, all for the same layers."""
        chain, stale = self._chains.get(name), self._stale.get(name)
        if chain is not None and chain.entry.order not in orders:
            chain.entry = replace(chain.entry, order=orders[0])
            await self._write_down()
        elif chain is None and stale is not None and stale[0].order not in orders:
            self._stale[name] = (replace(stale[0], order=orders[0]), stale[1])
            await self._write_down()

    async def keep(self, names: Collection[str]) -> list[str]:
        """Release all mounts but these, and those of layers alone; the names of those released."""
        entries = [chain.entry for chain in self._chains.values()]
        entries += [entry for entry, _ in self._stale.values()]
        others = sorted({entry.name for entry in entries if not entry.order.alone} - set(names))
        await self._release(others)
        return others

    async def _release(self, names: Iterable[str]) -> None:
        leaving = []
        for name in names:
            self._stale.pop(name, None)
            chain = self._chains.get(name)
            if chain is not None:
                chain.leave.set()
                leaving.append(chain)
        await self._write_down()
        for chain in leaving:
            await chain.gone.wait()

    def listed(self) -> list[dict[str, Any]]:
        """What is mounted, or should be, by name; for people and programs."""
        mounted = [(chain, chain.state if chain.released is None else "idle") for chain in self._mounted()]
        facts = [self._facts(chain.entry, state) for chain, state in mounted]
        facts += [self._facts(entry, "stale") | {"why": why} for entry, why in self._stale.values()]
        return sorted(facts, key=lambda fact: str(fact["name"]))

    def _facts(self, entry: Entry, state: str) -> dict[str, Any]:
        place = {"name": entry.name, "path": str(self._directory / entry.name), "driver": entry.driver}
        return {**place, **order_fields(entry.order), "state": state}

    def _mounted(self) -> list[_Chain]:
        chains = self._chains.values()
        return [chain for chain in chains if chain.error is None and not chain.leave.is_set()]

    def entries(self) -> tuple[Entry, ...]:
        """What is mounted, about to be, or should be, for the next daemon."""
        entries = {entry.name: entry for entry, _ in self._stale.values()}
        chains = [chain for chain in self._chains.values() if not chain.leave.is_set()]
        entries |= {
            chain.entry.name: chain.entry for chain in chains if chain.noted and chain.released is None
        }
        return tuple(entries.values())

    def idle(self) -> tuple[Entry, ...]:
        """What is mounted, and used by nobody."""
        return tuple(chain.entry for chain in self._mounted() if chain.released is not None)

    def expect(self, entries: Iterable[Entry]) -> None:
        """These mounts were there before, and are to be made again."""
        for entry in entries:
            self._stale[entry.name] = (entry, "not yet made again")

    async def remake(self) -> None:
        """Make mounts again that are expected, and go on trying."""
        while self._stale:
            waiting = [entry for entry, _ in self._stale.values()]
            turns = trio.CapacityLimiter(_REMADE_AT_ONCE)
            async with trio.open_nursery() as nursery:
                for entry in waiting:
                    nursery.start_soon(self._remake_one, entry, turns)
            await self._write_down()
            if self._stale:
                await trio.sleep(_TRY_AGAIN_S)

    async def _remake_one(self, entry: Entry, turns: trio.CapacityLimiter) -> None:
        async with turns:
            if entry.name not in self._stale:  # ordered, or released, meanwhile
                return
            try:
                await self._ensure(entry, "remade")
            except (IndexerError, LazyfsError) as error:
                if entry.name in self._stale:
                    self._stale[entry.name] = (entry, message_of(error))
                    _log.warning("%s is not mounted again yet: %s", entry.name, message_of(error))

    def adopt(self, entries: Iterable[Entry]) -> None:
        """Take over what a daemon before us mounted, and what the kernel can go on reading."""
        for entry in entries:
            chain = self._chains[entry.name] = _Chain(entry, self._directory / entry.name, "live")
            chain.noted = True
            chain.error = None
            self._nursery.start_soon(self._live, chain, unmounted_at_end(chain.path, entry.driver))

    async def _mount(self, chain: _Chain) -> None:
        async def note(devices: Sequence[int]) -> None:
            chain.entry = replace(chain.entry, devices=tuple(devices))
            chain.noted = True
            await self._write_down()

        await self._live(chain, self._driver.mounted(chain.entry, chain.path, note))

    async def _live(self, chain: _Chain, mounted: AbstractAsyncContextManager[str]) -> None:
        try:
            async with mounted as driver:
                chain.entry = replace(chain.entry, driver=driver, mounted=True, again=False)
                await self._write_down()  # before anybody is told
                chain.error = None
                self._stale.pop(chain.entry.name, None)
                chain.ready.set()
                await chain.leave.wait()
        except (IndexerError, LazyfsError) as error:
            self._failed(chain, error)
        except Exception as error:  # noqa: BLE001  # it must reach who waits, not end the daemon
            _log.exception("a bug")
            self._failed(chain, LazyfsError(f"a bug: {type(error).__name__}; the log has its trace"))
        finally:
            del self._chains[chain.entry.name]
            chain.ready.set()
            chain.gone.set()

    def _failed(self, chain: _Chain, error: Exception) -> None:
        if chain.error is None:
            _log.warning("unmounting %s: %s", chain.path, message_of(error))
        else:
            chain.error = error
