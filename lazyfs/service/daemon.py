"""The data daemon: puts grove, images, layers, chains and server together, and takes them down again.

At its end, by SIGTERM, everything is unmounted; what is in use goes lazily, and reads of it that the page
cache cannot answer fail from then on. Orders stay: the next daemon makes all mounts again. One that is
killed, or told to leave, leaves everything as it is: if its connection was kept, the next one goes on.
"""

import fcntl
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import trio

from lazyfs.assembly import open_cache
from lazyfs.cache.cache import Cache
from lazyfs.config import Config
from lazyfs.errors import MountError
from lazyfs.image.fetcher import FetchSettings
from lazyfs.image.tasks import open_tasks
from lazyfs.mount.forest import ROOT, Forest
from lazyfs.mount.forest_mount import take_down as unmount_all_at
from lazyfs.mount.mounts import Mount, read_mount_table
from lazyfs.service.chains import Chains
from lazyfs.service.desk import Desk
from lazyfs.service.erofs_driver import ErofsDriver
from lazyfs.service.grove import Grove, inherited_connection, new_connection
from lazyfs.service.images import Images
from lazyfs.service.indexing import IndexQueue
from lazyfs.service.layers import Layers
from lazyfs.service.ledger import Entry, Ledger, SavedFile, State
from lazyfs.service.options import ServiceOptions
from lazyfs.service.scribe import Scribe
from lazyfs.service.server import answer_questions, is_at, listen
from lazyfs.service.supervisor import Supervisor

_log = logging.getLogger(__name__)

_QUESTIONS: Final = "questions"
_LOCK_S: Final = 5.0
_LOOK_EVERY_S: Final = 0.05
_SYNC_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Heritage:
    """What a daemon before us left that we can go on with.

    Attributes:
        files: its files of the forest.
        adopted: its mounts, which are there.
        orders: its mounts that are to be made again.
    """

    files: tuple[SavedFile, ...]
    adopted: tuple[Entry, ...]
    orders: tuple[Entry, ...]


async def run_service(
    options: ServiceOptions,
    config: Config,
    supervisor: Supervisor,
    wait_leave: Callable[[], Awaitable[None]] = trio.sleep_forever,
) -> None:
    """Serve until cancelled, which unmounts everything, or until `wait_leave` returns, which leaves it.

    Raises:
        LazyfsError: it cannot begin; or the forest's mount was taken from us.
    """
    with _owned(options):
        cache = await trio.to_thread.run_sync(open_cache, config)
        ledger = Ledger(options.root)
        state = await trio.to_thread.run_sync(ledger.load)
        connection = inherited_connection(state.session, supervisor)
        if connection is not None:
            heritage = heritage_of(state, options, read_mount_table())
            forest = Forest(state.session.last if state.session else ROOT)
        else:
            heritage = Heritage((), (), state.entries)
            forest = Forest()
            await trio.to_thread.run_sync(partial(take_down, options, (), forest=True))
            connection = await trio.to_thread.run_sync(new_connection, options.forest, supervisor)
        grove = Grove(forest, connection, config.read_timeout_s)
        with _listening(options.socket, supervisor) as listener:
            supervisor.drop_rest()
            service = _Service(options, config, cache, supervisor)
            await service.run(grove, forest, heritage, ledger, listener, wait_leave)


def heritage_of(state: State, options: ServiceOptions, mounts: Iterable[Mount]) -> Heritage:
    """What can be gone on with of a state, given the mounts that there are."""
    trees = {mount.mount_point for mount in mounts if mount.fstype == b"erofs"}
    there = [entry for entry in state.entries if os.fsencode(options.mounts / entry.name) in trees]
    opens = {file.inode: file.opens for file in state.files}
    for entry in there:
        for inode in () if entry.mounted else entry.devices:  # which was opened after that was written
            opens[inode] = opens.get(inode, 0) + 1
    files = tuple(replace(file, opens=opens[file.inode]) for file in state.files)
    orders = [entry for entry in state.entries if entry.mounted and entry not in there]
    return Heritage(files, tuple(replace(entry, mounted=True) for entry in there), tuple(orders))


class _Service:
    """What runs while the daemon does."""

    def __init__(self, options: ServiceOptions, config: Config, cache: Cache, supervisor: Supervisor) -> None:
        self._options = options
        self._config = config
        self._cache = cache
        self._supervisor = supervisor

    async def run(
        self,
        grove: Grove,
        forest: Forest,
        heritage: Heritage,
        ledger: Ledger,
        listener: socket.socket,
        wait_leave: Callable[[], Awaitable[None]],
    ) -> None:
        options, config, cache = self._options, self._config, self._cache

        def compose() -> State:
            return State(grove.saved(), layers.saved(), chains.entries())

        scribe = Scribe(ledger, compose)
        settings = FetchSettings(timeout_s=config.read_timeout_s)
        async with open_tasks() as lasting:
            images = Images(lasting, config, cache)
            layers = Layers(lasting, forest, images, cache, settings, scribe.soon)
            for file in heritage.files:
                layers.put_back(file)
            async with grove.shown(options.forest, self._supervisor), open_tasks() as nursery:
                driver = ErofsDriver(images, layers, options.forest, cache)
                chains = Chains(nursery, images, driver, options.mounts, scribe.write)
                chains.adopt(heritage.adopted)
                kept = [entry.name for entry in heritage.adopted]
                await trio.to_thread.run_sync(partial(take_down, options, kept, forest=False))
                await scribe.write()
                queue = IndexQueue(images, config, options.content_store)
                for work in (scribe.run, queue.run):
                    nursery.start_soon(work)
                nursery.start_soon(chains.remake, heritage.orders)
                nursery.start_soon(answer_questions, listener, Desk(images, layers, chains, queue).answer)
                self._supervisor.ready()
                await wait_leave()
                await self._leave(layers)

    async def _leave(self, layers: Layers) -> None:
        """End at once, as if killed, but with everything on disk."""
        with trio.move_on_after(_SYNC_S):
            for lazy in layers.open_layers():
                await trio.to_thread.run_sync(lazy.sync, abandon_on_cancel=True)
        os._exit(0)


def take_down(options: ServiceOptions, kept: Collection[str], *, forest: bool) -> None:
    """Unmount all trees but these, and maybe the forest: a dead daemon left them to us.

    Whatever uses them can go on reading what the kernel has of them.

    Raises:
        MountError: something cannot be unmounted.
    """
    below = os.fsencode(options.mounts) + b"/"
    stay = {below + os.fsencode(name) for name in kept}
    points = {mount.mount_point for mount in read_mount_table()}
    trees = {point for point in points if point.startswith(below)}
    gone = sorted(trees - stay) + ([os.fsencode(options.forest)] if forest else [])
    for point in gone:
        if point in points:
            _log.info("%s was left by another daemon", os.fsdecode(point))
            unmount_all_at(Path(os.fsdecode(point)))
    for path in options.mounts.iterdir():
        if os.fsencode(path) not in stay:
            path.rmdir()


@contextmanager
def _owned(options: ServiceOptions) -> Iterator[None]:
    """Makes the directories, and sees that no other daemon has them; one that is about to die is waited for.

    Raises:
        MountError: they cannot be made, or another daemon has them.
    """
    taken = {mount.mount_point for mount in read_mount_table()}  # what is mounted may have nobody who answers
    try:
        for path in (options.root, options.forest, options.mounts):
            if os.fsencode(path) not in taken:
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(options.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise MountError(f"cannot use {options.root}: {error.strerror}") from error
    try:
        until = time.monotonic() + _LOCK_S
        while not _try_lock(lock):
            if time.monotonic() > until:
                raise MountError(f"another data daemon uses {options.root}")
            time.sleep(_LOOK_EVERY_S)
        yield
    finally:
        os.close(lock)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _listening(path: Path, supervisor: Supervisor) -> Iterator[socket.socket]:
    """A socket that listens at `path`: that of the daemon before us, where questions may wait, or a new one.

    Raises:
        MountError: there can be none.
    """
    kept = supervisor.take(_QUESTIONS)
    listener = socket.socket(fileno=kept) if kept is not None else None
    if listener is not None and not is_at(listener, path):
        listener.close()
        listener = None
    if listener is None:
        listener = listen(path)
        supervisor.store(_QUESTIONS, listener.fileno())
    with listener:
        yield listener
