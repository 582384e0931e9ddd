"""The data daemon: puts content, chains, fronts and server together, and takes them down again.

At its end, by SIGTERM, everything is unmounted; what is in use goes lazily, and reads of it that the page
cache cannot answer fail from then on. Orders stay: the next daemon makes all mounts again. One that is
killed, or told to leave, leaves everything as it is: if its connection was kept, the next one goes on.
"""

import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final

import trio

from lazyfs.assembly import open_cache, source_settings
from lazyfs.cache.cache import Cache
from lazyfs.cache.files import kernel_boot_id
from lazyfs.cache.keeping import keep_room
from lazyfs.config import Config
from lazyfs.errors import MountError
from lazyfs.flock import flock_within, holder_of
from lazyfs.image.tasks import open_tasks
from lazyfs.mount.forest_mount import take_down
from lazyfs.mount.fuse_mount import check_mount_point
from lazyfs.mount.mounts import read_mount_table
from lazyfs.service.chains import Chains, Driver
from lazyfs.service.content import Content
from lazyfs.service.desk import Desk
from lazyfs.service.drivers.either import FirstThatWorks
from lazyfs.service.drivers.erofs import ErofsDriver
from lazyfs.service.drivers.forest_front import ForestFront, connect_forest
from lazyfs.service.indexing import IndexQueue
from lazyfs.service.layer_store.front import StoreFront, take_down_store
from lazyfs.service.layer_store.raw_blobs import RawBlobs
from lazyfs.service.layer_store.shifted import ShiftedMounts
from lazyfs.service.layer_store.stock import LayerStock
from lazyfs.service.ledger import Ledger, State
from lazyfs.service.options import ServiceOptions
from lazyfs.service.pulls import PullCredentials
from lazyfs.service.scribe import Scribe
from lazyfs.service.server import answer_questions, keep, listening
from lazyfs.service.survival.heritage import Heritage, inherit, take_down_rest
from lazyfs.service.survival.kept_session import Connection
from lazyfs.service.survival.supervisor import Supervisor
from lazyfs.source.open import get_ready

_log = logging.getLogger(__name__)

_LOCK_S: Final = 5.0
_SYNC_S: Final = 5.0


async def _tell_metrics(address: str, desk: Desk, cache: Cache) -> None:
    from lazyfs.metrics import serve_mount_metrics  # noqa: PLC0415  # seldom wanted

    await serve_mount_metrics(address, desk.statistics, cache)


def _get_ready(config: Config) -> None:
    try:
        get_ready(source_settings(config))
    except Exception as error:  # noqa: BLE001  # it only saves time; whoever needs what failed is told
        _log.info("not ready for the first request: %s", error)


WaitLeave = Callable[[Callable[[], bool]], Awaitable[None]]
"""Returns when the daemon is to leave everything as it is; can ask if anything of ours is still in use."""


async def run_service(
    options: ServiceOptions,
    config: Config,
    supervisor: Supervisor,
    wait_leave: WaitLeave,
) -> None:
    """Serve until cancelled, which unmounts everything, or until `wait_leave` returns, which leaves it.

    Raises:
        LazyfsError: it cannot begin; or the forest's mount was taken from us.
    """
    with _owned(options):
        try:
            await _begin(options, config, supervisor, wait_leave)
        except trio.Cancelled:  # before there was anything that takes down what it serves
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(_take_down_all, options, supervisor)
            raise


async def _begin(
    options: ServiceOptions, config: Config, supervisor: Supervisor, wait_leave: WaitLeave
) -> None:
    cache = await trio.to_thread.run_sync(open_cache, config)
    ledger = Ledger(options.root, kernel_boot_id())
    state = await trio.to_thread.run_sync(ledger.load)
    # Who cannot listen has to end before anything is mounted and kept: else the keeper tries again.
    with listening(options.socket, supervisor) as (listener, is_kept):
        heritage = inherit(state, options, supervisor, read_mount_table())
        if heritage.store is None:
            await trio.to_thread.run_sync(_make_way, options, state)
        connection = heritage.connection or await _new_connection(options, supervisor, heritage)
        if not is_kept:
            keep(listener, supervisor)
        pulls = PullCredentials(supervisor)
        supervisor.drop_rest()
        service = _Service(options, config, cache, supervisor, heritage, connection, pulls)
        await service.run(ledger, listener, wait_leave)


async def _new_connection(
    options: ServiceOptions, supervisor: Supervisor, heritage: Heritage
) -> Connection | None:
    """As `connect_forest` says, once a forest that nobody goes on with is unmounted, and trees on it."""
    await trio.to_thread.run_sync(take_down_rest, options, heritage.adopted_names)
    await trio.to_thread.run_sync(take_down, options.forest)
    return await trio.to_thread.run_sync(connect_forest, options, supervisor)


def _make_way(options: ServiceOptions, left: State) -> None:
    """Unmount a layer store that nobody goes on with.

    Raises:
        MountError: it cannot be unmounted, or there can be none where one is wanted.
    """
    if left.store is not None:
        take_down_store(left.store.directory)
    if options.layer_store is not None:
        take_down_store(options.layer_store)
        check_mount_point(options.layer_store)


def _take_down_all(options: ServiceOptions, supervisor: Supervisor) -> None:
    supervisor.drop_rest()  # first: whoever reads by what nobody serves must not be waited for
    if options.layer_store:
        take_down_store(options.layer_store)
    take_down_rest(options, ())
    take_down(options.forest)


class _Service:
    """What runs while the daemon does: what is read lasts longest, then what is mounted, then who orders it.

    Args:
        options: how the daemon is started.
        config: the configuration.
        cache: where content is kept.
        supervisor: keeps descriptors.
        heritage: what it goes on with.
        connection: shows the forest; None if trees are to have connections of their own.
        pulls: what is known of who pulls.
    """

    def __init__(
        self,
        options: ServiceOptions,
        config: Config,
        cache: Cache,
        supervisor: Supervisor,
        heritage: Heritage,
        connection: Connection | None,
        pulls: PullCredentials,
    ) -> None:
        self._options = options
        self._config = config
        self._cache = cache
        self._supervisor = supervisor
        self._heritage = heritage
        self._pulls = pulls
        timeout_s = config.read_timeout_s
        self._forest = ForestFront(options.forest, supervisor, connection, heritage.last, timeout_s)
        self._store = StoreFront(options.layer_store, supervisor, heritage.store, timeout_s)

    async def run(self, ledger: Ledger, listener: socket.socket, wait_leave: WaitLeave) -> None:
        """Serve, going on with what is there."""

        def compose() -> State:  # nothing is written before all of this is there
            return self._state(content, chains)

        scribe = Scribe(ledger, compose)
        async with open_tasks() as lasting:
            content = self._content(lasting, scribe)
            content.go_on(self._heritage)
            async with self._forest.shown(), open_tasks() as nursery:
                chains = self._chains(nursery, content, scribe)
                await self._adopt(chains)
                await scribe.write()
                self._begin_chores(nursery, chains, scribe)
                async with self._store.shown(self._stock(nursery, content, chains)):
                    await scribe.write()
                    self._begin_answering(nursery, listener, content, chains)
                    self._supervisor.ready()
                    await wait_leave(content.is_used)
                    await _leave(content)

    def _state(self, content: Content, chains: Chains) -> State:
        """What the next daemon must know."""
        return State(
            session=self._forest.saved(),
            files=content.layers.saved() if self._forest.is_connected else (),
            trees=content.fuse.saved(),
            entries=chains.entries(),
            idle=chains.idle(),
            store=self._store.saved(),
        )

    def _content(self, lasting: trio.Nursery, scribe: Scribe) -> Content:
        forest, given = self._forest.forest, self._pulls.given
        return Content(lasting, self._config, self._cache, forest, self._supervisor, scribe.soon, given)

    def _chains(self, nursery: trio.Nursery, content: Content, scribe: Scribe) -> Chains:
        mounts, linger_s = self._options.mounts, self._options.linger_s
        driver, warm = self._driver(content), content.trees.warm
        return Chains(nursery, content.images, driver, warm, mounts, scribe.write, linger_s)

    def _driver(self, content: Content) -> Driver:
        if not self._forest.is_connected or self._options.driver == "fuse":
            return content.fuse
        erofs = ErofsDriver(content.trees, content.layers, self._options.forest)
        return FirstThatWorks(erofs, content.fuse) if self._options.driver == "auto" else erofs

    async def _adopt(self, chains: Chains) -> None:
        """Go on with mounts that are there, expect others that are to be, and take down the rest."""
        chains.adopt(self._heritage.adopted)
        chains.expect(self._heritage.orders)  # before anything is written: nothing gets lost if we die
        await trio.to_thread.run_sync(take_down_rest, self._options, self._heritage.adopted_names)

    def _begin_chores(self, nursery: trio.Nursery, chains: Chains, scribe: Scribe) -> None:
        """What nobody asks for."""
        nursery.start_soon(scribe.run)
        nursery.start_soon(keep_room, self._cache)
        nursery.start_soon(trio.to_thread.run_sync, _get_ready, self._config)
        nursery.start_soon(chains.remake)

    def _begin_answering(
        self, nursery: trio.Nursery, listener: socket.socket, content: Content, chains: Chains
    ) -> None:
        """Questions, and what is done for them when there is time."""
        pulls = self._pulls
        queue = IndexQueue(content.images, self._config, self._options.content_store, pulls.given)
        desk = Desk(content, chains, queue, pulls, self._cache)
        nursery.start_soon(queue.run)
        nursery.start_soon(answer_questions, listener, desk.answer)
        if self._config.metrics:
            nursery.start_soon(_tell_metrics, self._config.metrics, desk, self._cache)

    def _stock(self, nursery: trio.Nursery, content: Content, chains: Chains) -> LayerStock:
        blobs = RawBlobs(nursery, content.images, self._cache.root / "tmp")
        shifted = ShiftedMounts(nursery, self._options.mounts)
        return LayerStock(nursery, content.images, content.starts, chains, blobs, shifted)


async def _leave(content: Content) -> None:
    """End at once, as if killed, but with everything on disk."""
    with trio.move_on_after(_SYNC_S):
        await content.sync()
    os._exit(0)


@contextmanager
def _owned(options: ServiceOptions) -> Iterator[None]:
    """Makes the directories, and sees that no other daemon has them; one that is about to die is waited for.

    Raises:
        MountError: they cannot be made, or another daemon has them.
    """
    taken = {mount.mount_point for mount in read_mount_table()}  # what is mounted may have nobody who answers
    try:
        for path in filter(None, (options.root, options.forest, options.mounts, options.layer_store)):
            if os.fsencode(path) not in taken:
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(options.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise MountError(f"cannot use {error.filename or options.root}: {error.strerror}") from error
    try:
        if not flock_within(lock, _LOCK_S):
            who = holder_of(options.root / "lock")
            raise MountError(f"another data daemon uses {options.root}" + (f": {who}" if who else ""))
        yield
    finally:
        os.close(lock)
