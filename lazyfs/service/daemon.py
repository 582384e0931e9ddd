"""The data daemon: puts forest, images, layers, chains and server together, and takes them down again.

At its end, by SIGTERM, everything is unmounted; what is in use goes lazily, and reads of it that the page
cache cannot answer fail from then on. Orders stay: the next daemon makes all mounts again. One that is
killed, or told to leave, leaves everything as it is: if its connection was kept, the next one goes on.
"""

import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Final

import trio

from lazyfs.assembly import fetch_settings, open_cache, source_settings
from lazyfs.cache.cache import Cache
from lazyfs.cache.files import kernel_boot_id
from lazyfs.cache.keeping import keep_room
from lazyfs.config import Config
from lazyfs.errors import MountError
from lazyfs.flock import flock_within, holder_of
from lazyfs.image.tasks import open_tasks
from lazyfs.mount.drivers import why_not_erofs
from lazyfs.mount.forest import Forest
from lazyfs.mount.forest_answers import ForestAnswers
from lazyfs.mount.forest_mount import take_down
from lazyfs.mount.fuse_mount import check_mount_point
from lazyfs.mount.mounts import read_mount_table
from lazyfs.service.chains import Chains
from lazyfs.service.desk import Desk
from lazyfs.service.either_driver import FirstThatWorks
from lazyfs.service.erofs_driver import ErofsDriver
from lazyfs.service.fuse_driver import FuseDriver
from lazyfs.service.heritage import Heritage, inherit, take_down_rest
from lazyfs.service.images import Images
from lazyfs.service.indexing import IndexQueue
from lazyfs.service.kept_session import Connection, KeptSession, new_connection
from lazyfs.service.layer_stock import LayerStock
from lazyfs.service.layers import Layers
from lazyfs.service.ledger import Ledger, State
from lazyfs.service.options import ServiceOptions
from lazyfs.service.pulls import PullCredentials
from lazyfs.service.raw_blobs import RawBlobs
from lazyfs.service.scribe import Scribe
from lazyfs.service.server import answer_questions, is_at, listen
from lazyfs.service.starts import Starts
from lazyfs.service.store_front import StoreFront, take_down_store
from lazyfs.service.supervisor import Supervisor
from lazyfs.service.tree import Trees
from lazyfs.source.open import get_ready

_log = logging.getLogger(__name__)

_QUESTIONS: Final = "questions"
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
    with _listening(options.socket, supervisor) as (listener, is_kept):
        heritage = inherit(state, options, supervisor, read_mount_table())
        if heritage.store is None:
            await trio.to_thread.run_sync(_make_way, options, state)
        connection = heritage.connection
        if connection is None:
            rest = [entry.name for entry in heritage.adopted]
            await trio.to_thread.run_sync(take_down_rest, options, rest)
            await trio.to_thread.run_sync(take_down, options.forest)
            connection = await trio.to_thread.run_sync(_new_connection, options, supervisor)
        if not is_kept:
            supervisor.store(_QUESTIONS, listener.fileno())
        pulls = PullCredentials(supervisor)
        supervisor.drop_rest()
        service = _Service(options, config, cache, ledger, supervisor, pulls)
        await service.run(heritage, connection, listener, wait_leave)


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


def _new_connection(options: ServiceOptions, supervisor: Supervisor) -> Connection | None:
    """A connection for the forest; None if trees are to have their own."""
    if options.driver == "fuse":
        return None
    reason = why_not_erofs()
    if reason is None:
        try:
            return new_connection("forest", options.forest, supervisor)
        except MountError as error:
            reason = str(error)
    if options.driver == "erofs":
        raise MountError(f"the erofs driver does not work here: {reason}")
    _log.warning("trees are served by FUSE, the erofs driver does not work here: %s", reason)
    return None


class _Service:
    """What runs while the daemon does."""

    def __init__(
        self,
        options: ServiceOptions,
        config: Config,
        cache: Cache,
        ledger: Ledger,
        supervisor: Supervisor,
        pulls: PullCredentials,
    ) -> None:
        self._pulls = pulls
        self._options = options
        self._config = config
        self._cache = cache
        self._ledger = ledger
        self._supervisor = supervisor

    async def run(
        self,
        heritage: Heritage,
        connection: Connection | None,
        listener: socket.socket,
        wait_leave: WaitLeave,
    ) -> None:
        """Serve, going on with what is there."""

        def compose() -> State:
            saved = session.saved(forest.last) if session else None
            files = layers.saved() if session else ()
            store = front.saved() if front else None
            return State(saved, files, fuse.saved(), chains.entries(), chains.idle(), store)

        options, config, cache = self._options, self._config, self._cache
        timeout_s = config.read_timeout_s
        scribe = Scribe(self._ledger, compose)
        forest = Forest(heritage.last)
        session = KeptSession(ForestAnswers(forest, timeout_s), connection) if connection else None
        front = None
        if options.layer_store:
            front = StoreFront(options.layer_store, self._supervisor, heritage.store)
        async with open_tasks() as lasting:
            fetching = fetch_settings(config)
            images = Images(lasting, config, cache, fetching.traffic, self._pulls.given)
            layers = Layers(lasting, forest, images, cache, fetching, scribe.soon)
            for file in heritage.files:
                layers.put_back(file)
            starts = Starts(lasting, images, layers, cache, fetching.traffic)
            trees = Trees(images, layers, starts, cache)
            fuse = FuseDriver(lasting, trees, layers, self._supervisor, timeout_s, scribe.soon)
            fuse.go_on(heritage.trees)
            erofs = (
                ErofsDriver(trees, layers, options.forest) if session and options.driver != "fuse" else None
            )
            shown = session.shown(options.forest, self._supervisor) if session else nullcontext()
            async with shown, open_tasks() as nursery:
                driver = FirstThatWorks(erofs, fuse) if options.driver == "auto" else erofs or fuse
                chains = Chains(
                    nursery, images, driver, trees.warm, options.mounts, scribe.write, options.linger_s
                )
                chains.adopt(heritage.adopted)
                chains.expect(heritage.orders)  # before anything is written: nothing gets lost if we die
                kept = [entry.name for entry in heritage.adopted]
                await trio.to_thread.run_sync(take_down_rest, options, kept)
                await scribe.write()
                queue = IndexQueue(images, config, options.content_store, self._pulls.given)
                nursery.start_soon(scribe.run)
                nursery.start_soon(queue.run)
                nursery.start_soon(keep_room, cache)
                nursery.start_soon(trio.to_thread.run_sync, _get_ready, config)
                nursery.start_soon(chains.remake)
                desk = Desk(images, starts, layers, fuse, chains, queue, fetching.traffic, self._pulls, cache)
                if config.metrics:
                    nursery.start_soon(_tell_metrics, config.metrics, desk, cache)
                nursery.start_soon(answer_questions, listener, desk.answer)
                blobs = RawBlobs(nursery, images, cache.root / "tmp")
                stock = LayerStock(nursery, images, starts, chains, blobs)
                async with front.shown(stock, timeout_s) if front else nullcontext():
                    await scribe.write()
                    self._supervisor.ready()
                    await wait_leave(lambda: bool(fuse.saved()) or any(file.opens for file in layers.saved()))
                    await _leave(layers)


async def _leave(layers: Layers) -> None:
    """End at once, as if killed, but with everything on disk."""
    with trio.move_on_after(_SYNC_S):
        for lazy in layers.open_layers():
            await trio.to_thread.run_sync(lazy.sync, abandon_on_cancel=True)
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


@contextmanager
def _listening(path: Path, supervisor: Supervisor) -> Iterator[tuple[socket.socket, bool]]:
    """A socket that listens at `path`: that of the daemon before us, where questions may wait, or a new one.

    Gives also whether it is the one from before, which is kept for the daemon after us already.

    Raises:
        MountError: there can be none.
    """
    kept = supervisor.take(_QUESTIONS)
    listener = socket.socket(fileno=kept) if kept is not None else None
    if listener is not None and not is_at(listener, path):
        listener.close()
        listener = None
    is_kept = listener is not None
    if listener is None:
        listener = listen(path)
    with listener:
        yield listener, is_kept
