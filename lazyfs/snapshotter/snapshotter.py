"""The snapshotter itself: containerd's calls on records, directories and the daemon's mounts. No gRPC in it.

Who waits for what:

* Records are touched in one thread, a call at a time.
* A snapshot on a lazy chain uses the daemon's mount from its record's first moment, before the mount is
  ordered, to its removal or commit. `_uses` is held while such a record is made, and while a mount that
  nobody uses is let go, from the look at the records to the daemon's answer: so none is let go under a new
  user.
* What could not be let go, because the daemon was away or we were killed, is let go by `tend`, which tells
  the daemon all names in use. It runs at the start and whenever a release failed.

What a kill leaves: a directory without a record (removed at the next start, and by `cleanup`), a record whose
caller never heard of it (containerd's garbage collection removes what it does not know), a mount in use by
nobody (`tend`).
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

import trio

from lazyfs.oci.chain import ChainOrder
from lazyfs.snapshotter.chains import BoundedChains
from lazyfs.snapshotter.directories import Directories
from lazyfs.snapshotter.filters import parse_filters
from lazyfs.snapshotter.id_mapping import REMAPPED, SAME, IdMapping, mapping_of
from lazyfs.snapshotter.labels import REF, is_top, order_of
from lazyfs.snapshotter.mapped_lowers import MappedLowers
from lazyfs.snapshotter.metastore import Metastore
from lazyfs.snapshotter.metrics import SnapshotterCounts
from lazyfs.snapshotter.model import (
    ChainAway,
    DiskRefused,
    Info,
    Kind,
    Mount,
    SnapshotError,
    SnapshotExists,
    SnapshotInUse,
    Usage,
)
from lazyfs.snapshotter.mounts import OverlayOptions, mounts_of
from lazyfs.snapshotter.records import Record

P = ParamSpec("P")
T = TypeVar("T")

_DISK_THREADS: Final = 8
_MOUNT_THREADS: Final = 64  # they hang where a mount does
_ROOT_TIMEOUT_S: Final = 20.0
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 30.0

_OWNERS_CHANGED: Final = (
    "containerd changes the owner of each file of a lazy image for a user namespace, which fetches all of it:"
    ' have the configuration of containerd 2 announce capabilities = ["remap-ids"] for this plugin'
    " (docs/containerd.md)"
)

_log = logging.getLogger(__name__)


class Snapshotter:
    """All calls of the snapshots service.

    Args:
        store: the records.
        directories: the directories.
        chains: the daemon.
        options: of this machine's overlayfs.
        mapped: shows what containerd cannot map.
        nursery: where work goes on that no caller waits for.
        counts: told of what is made.
        step: told the name of each step before it is taken; tests end the process there.
    """

    def __init__(
        self,
        store: Metastore,
        directories: Directories,
        chains: BoundedChains,
        options: OverlayOptions,
        mapped: MappedLowers,
        nursery: trio.Nursery,
        *,
        counts: SnapshotterCounts | None = None,
        step: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._counts = counts or SnapshotterCounts()
        self._store = store
        self._directories = directories
        self._chains = chains
        self._options = options
        self._mapped = mapped
        self._nursery = nursery
        self._step = step
        self._record_thread = trio.CapacityLimiter(1)
        self._disk_threads = trio.CapacityLimiter(_DISK_THREADS)
        self._mount_threads = trio.CapacityLimiter(_MOUNT_THREADS)
        self._uses = trio.Lock()
        self._adopting = trio.Lock()
        self._must_tend = trio.Event()
        self._making: set[int] = set()
        self._last_id = 0

    async def start(self) -> None:
        """Put in order what the last run left, and tend to the daemon's mounts from now on."""
        known = await self._records(self._store.ids)
        self._last_id = max(known | {await self._disk(self._directories.highest)})
        await self._disk(self._mapped.clear)
        try:
            await self.cleanup()
        except DiskRefused as error:  # a directory too many is no reason to leave a node without snapshots
            _log.warning("%s; it is tried again at the next cleanup", error)
        self._must_tend.set()
        self._nursery.start_soon(self._tend)

    # The calls

    async def prepare(self, key: str, parent: str, labels: Mapping[str, str]) -> tuple[Mount, ...]:
        """A new writable snapshot; returns how to mount it.

        With the label `containerd.io/snapshot.ref` the layer may turn out not to be needed here: then a
        committed snapshot on the same parent carries that label, and SnapshotExists says so.

        Raises:
            SnapshotError: of any kind.
        """
        order = await self._order(parent, labels)
        lazy = order is not None and await self._is_lazy(key, parent, labels, order)
        if labels.get(REF):
            self._counts.layer(lazy=lazy)
        if order is not None and lazy:
            raise SnapshotExists(f"the layer {order.layer} is served as it is read")
        return await self._create(Kind.ACTIVE, key, parent, labels)

    async def view(self, key: str, parent: str, labels: Mapping[str, str]) -> tuple[Mount, ...]:
        """A new read-only snapshot; returns how to mount it.

        Raises:
            SnapshotError: of any kind.
        """
        return await self._create(Kind.VIEW, key, parent, labels)

    async def mounts(self, key: str) -> tuple[Mount, ...]:
        """How to mount an active snapshot or a view; what lies below is mounted anew if it has to be.

        Raises:
            SnapshotInUse: it is committed.
            SnapshotError: of other kinds.
        """
        record = await self._records(self._store.find, key)
        if record.info.kind is Kind.COMMITTED:
            raise SnapshotInUse(f"snapshot {key} is committed; a view of it can be mounted")
        lowers = await self._lowers(record)
        return await self._shown(record, lowers, await self._mapping(record, lowers))

    async def commit(self, name: str, key: str, parent: str, labels: Mapping[str, str]) -> None:
        """Make an active snapshot a committed one, with these labels alone. Its files are on disk then.

        Raises:
            SnapshotError: of any kind.
        """
        record = await self._records(self._store.find, key)
        usage = Usage()
        if record.info.kind is Kind.ACTIVE:
            usage = await self._disk(self._directories.usage, record.id)
            await self._disk(self._directories.flush, record.id)
        self._step("commit")
        await self._records(self._store.commit, name, key, parent, labels, usage)
        self._step("committed")
        await self._let_go(record)
        order = order_of(record.info.labels, record.depth + 1)
        if order is not None and is_top(record.info.labels):
            self._nursery.start_soon(self._chains.index, order)

    async def remove(self, key: str) -> None:
        """Remove a snapshot on which no other stands.

        Raises:
            SnapshotError: of any kind.
        """
        self._step("remove")
        record = await self._records(self._store.remove, key)
        self._step("removed")
        if not record.is_lazy:
            await self._remove_directory(record.id)
        if record.info.kind is not Kind.COMMITTED:
            await self._let_go(record)

    async def stat(self, key: str) -> Info:
        """What is known of a snapshot.

        Raises:
            NoSnapshot: there is none.
        """
        return (await self._records(self._store.find, key)).info

    async def update(self, name: str, labels: Mapping[str, str], paths: Sequence[str]) -> Info:
        """Change labels, as `Metastore.update` does.

        Raises:
            SnapshotError: of any kind.
        """
        return await self._records(self._store.update, name, labels, paths)

    async def matching(self, filters: Sequence[str]) -> list[Info]:
        """All snapshots that pass one of the filters.

        Raises:
            BadSnapshotCall: a filter does not parse.
        """
        return await self._records(self._store.matching, parse_filters(filters))

    async def namespace(self, number: int) -> str:
        """The namespace that a snapshot belongs to, by its id: containerd begins names with it.

        Raises:
            NoSnapshot: there is none.
        """
        return (await self._records(self._store.name, number)).partition("/")[0]

    async def usage(self, key: str) -> Usage:
        """What a snapshot takes on disk by itself: an active one now, a committed one since its commit.

        Raises:
            NoSnapshot: there is none.
        """
        record = await self._records(self._store.find, key)
        if record.info.kind is Kind.ACTIVE:
            return await self._disk(self._directories.usage, record.id)
        return await self._records(self._store.usage, key)

    async def kinds(self) -> dict[tuple[str, bool], int]:
        """How many snapshots there are of each kind, lazy and not."""
        return await self._records(self._store.kinds)

    async def cleanup(self) -> None:
        """Remove directories that belong to no snapshot.

        Raises:
            DiskRefused: one cannot be removed; all others are.
        """
        last, making = self._last_id, set(self._making)  # first: what is begun later is none of our business
        known = await self._records(self._store.ids)
        refused: DiskRefused | None = None
        for number in await self._disk(self._directories.stray, known | making):
            try:
                if number <= last:
                    await self._disk(self._directories.remove, number)
            except DiskRefused as error:
                refused = refused or error
        if refused is not None:
            raise refused

    # Lazy layers

    async def _order(self, parent: str, labels: Mapping[str, str]) -> ChainOrder | None:
        """What a Prepare call orders; None if its layer cannot be lazy, as on a parent that is not."""
        if not labels.get(REF):
            return None
        if not parent:
            return order_of(labels, 1)
        below = await self._records(self._store.find, parent)
        return order_of(labels, below.depth + 1) if below.is_lazy else None

    async def _is_lazy(self, key: str, parent: str, labels: Mapping[str, str], order: ChainOrder) -> bool:
        """Whether there is now a lazy snapshot for the order.

        chainIDs stand in image configurations, which anybody can write. So a snapshot is shared only if the
        compressed layer is the same too; where another layer has the chainID already, this one is unpacked,
        and containerd compares.
        """
        if not await self._chains.can_be_lazy(order):
            return False
        async with self._adopting:  # of two who ask for the same, one makes it
            there = await self._records(self._store.lazy, order.chain_id, parent)
            if there is None:
                self._step("lazy")
                number = self._new_id()
                await self._records(self._store.create_lazy, number, key, parent, labels, order)
                self._step("lazy made")
                return True
        if there.layer != order.layer:
            _log.info("layer %s of %s is not lazy: %s has its chainID", order.layer, order.image, there.layer)
            return False
        await self._records(self._store.also_ordered, there.info.name, order)
        return True

    async def _let_go(self, record: Record) -> None:
        """Release the mount that a snapshot used, if nobody else does."""
        await self._mapped.end(record.id)
        base = record.base
        if not base:
            return
        async with self._uses:
            if await self._records(self._store.in_use, base):
                return
            self._step("release")
            if not await self._chains.release(base):
                self._must_tend.set()

    async def _tend(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            await self._must_tend.wait()
            async with self._uses:
                self._must_tend = trio.Event()
                kept = await self._chains.keep(await self._records(self._store.bases_in_use))
            if kept:
                pause_s = _FIRST_PAUSE_S
                continue
            self._must_tend.set()
            await trio.sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    # Snapshots with directories

    async def _create(
        self, kind: Kind, key: str, parent: str, labels: Mapping[str, str]
    ) -> tuple[Mount, ...]:
        number = self._new_id()
        self._making.add(number)
        try:
            self._step("make")
            await self._disk(self._directories.make, number)
            self._step("create")
            record = await self._record(number, kind, key, parent, labels)
        except SnapshotError:
            await self._remove_directory(number)
            raise
        finally:
            self._making.discard(number)
        self._step("created")
        try:
            lowers = await self._lowers(record)
            mapping = await self._mapping(record, lowers)
            if kind is Kind.ACTIVE and lowers:
                status = await self._attributes(lowers[0])
                owner = mapping.owner(status.st_uid, status.st_gid)
                await self._disk(self._directories.dress, number, status, owner)
            mounts = await self._shown(record, lowers, mapping)
        except SnapshotError:
            with suppress(SnapshotError):
                await self.remove(key)
            raise
        self._step("answer")
        self._counts.created(lazy=bool(record.base))
        if record.base and key.endswith(REMAPPED):
            _log.warning(_OWNERS_CHANGED)
        return mounts

    async def _record(
        self, number: int, kind: Kind, key: str, parent: str, labels: Mapping[str, str]
    ) -> Record:
        base = (await self._records(self._store.find, parent)).base if parent else ""
        async with self._uses if base else nullcontext():  # what uses no mount waits for no daemon
            return await self._records(self._store.create, number, kind, key, parent, labels)

    async def _lowers(self, record: Record) -> list[Path]:
        """The directories that a snapshot stands on, top first; a lazy one among them is mounted."""
        chain = await self._records(self._store.chain, record)
        lowers = [self._directories.upper(number) for number in chain.here]
        if chain.base:
            lowers.append(await self._chains.mount(chain.base, chain.orders))
        return lowers

    async def _shown(self, record: Record, lowers: Sequence[Path], mapping: IdMapping) -> tuple[Mount, ...]:
        upper, work = self._directories.upper(record.id), self._directories.work(record.id)
        source, said = "overlay", mapping.options
        if said and record.base and len(lowers) > 1:
            source, said = str(lowers[-1]), ()
            lowers = await self._mapped.shown(record.id, lowers, mapping)
        return mounts_of(record.info.kind, upper, work, lowers, self._options, said, source)

    async def _mapping(self, record: Record, lowers: Sequence[Path]) -> IdMapping:
        """How users are to be mapped where a snapshot is mounted: not at all where they already are below."""
        mapping = mapping_of(record.info.labels)
        if mapping is SAME or not lowers:
            return mapping
        return SAME if await self._is_mapped_below(record, lowers, mapping) else mapping

    async def _is_mapped_below(self, record: Record, lowers: Sequence[Path], mapping: IdMapping) -> bool:
        """Whether containerd has changed the owners of what a snapshot stands on, as its root shows.

        Of an image's own layers it has not: who their roots belong to is the author's choice.
        """
        below = await self._records(self._store.find, record.info.parent)
        if below.info.labels.get(REF):
            return False
        now, *before = [await self._attributes(directory) for directory in lowers[:2]]
        changed = mapping.owner(before[0].st_uid, before[0].st_gid) if before else mapping.root
        return (now.st_uid, now.st_gid) == changed

    async def _attributes(self, directory: Path) -> os.stat_result:
        try:
            with trio.fail_after(_ROOT_TIMEOUT_S):
                return await trio.to_thread.run_sync(
                    directory.stat, abandon_on_cancel=True, limiter=self._mount_threads
                )
        except (OSError, trio.TooSlowError) as error:
            raise ChainAway(f"the root of what lies below cannot be looked at: {error}") from error

    async def _remove_directory(self, number: int) -> None:
        """Remove a directory whose record is gone; what refuses is left to `cleanup`."""
        try:
            await self._disk(self._directories.remove, number)
        except DiskRefused as error:
            _log.info("%s", error)

    # Threads

    def _new_id(self) -> int:
        self._last_id += 1
        return self._last_id

    async def _records(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await trio.to_thread.run_sync(partial(call, *args, **kwargs), limiter=self._record_thread)

    async def _disk(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await trio.to_thread.run_sync(partial(call, *args, **kwargs), limiter=self._disk_threads)
