"""The `fuse` driver of the daemon: each chain has a FUSE connection of its own, answered by us.

A tree is served for as long as its connection lives, unmounted or not: the connection ends with its last
user. Like that of the forest, its descriptor is kept, and the next daemon goes on with it.
"""

import logging
import math
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import trio
from msgspec import Struct

from indexer.errors import IndexerError
from lazyfs.errors import LazyfsError, MountError, NotFound
from lazyfs.exit_codes import message_of
from lazyfs.image.image import map_metadata
from lazyfs.image.tasks import open_tasks
from lazyfs.mount.answers import Negotiated
from lazyfs.mount.contents import Contents
from lazyfs.mount.fuse_mount import Connection, MountOptions, attach, check_mount_point, connect
from lazyfs.mount.raw_session import RawSession
from lazyfs.mount.tree_answers import TreeAnswers
from lazyfs.mount.tuning import set_read_ahead
from lazyfs.mount.wire_init import InitFlag
from lazyfs.service.chains import NoteDevices, make_mount_point, unmounted_at_end
from lazyfs.service.layers import Layers, ShownLayer
from lazyfs.service.ledger import Entry, SavedTree, path_saved
from lazyfs.service.survival.supervisor import Supervisor
from lazyfs.service.tree import OpenTree, Trees

_log = logging.getLogger(__name__)

_PREFIX: Final = "tree-"
_TRY_AGAIN_S: Final = 1.0


class InheritedTree(Struct, frozen=True):
    """A tree of a daemon before us, and its connection."""

    saved: SavedTree
    device_fd: int


def inherited_trees(saved: Iterable[SavedTree], supervisor: Supervisor) -> list[InheritedTree]:
    """The trees whose connections were kept for us."""
    taken = [(tree, supervisor.take(_PREFIX + tree.token)) for tree in saved]
    return [InheritedTree(tree, descriptor) for tree, descriptor in taken if descriptor is not None]


class FuseDriver:
    """A `chains.Driver`.

    Args:
        nursery: where trees are served, until nobody uses them.
        trees: opens them.
        layers: opens those of a daemon before us.
        supervisor: keeps their descriptors.
        read_timeout_s: how long a reader waits at most.
        changed: called whenever `saved` changes.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        trees: Trees,
        layers: Layers,
        supervisor: Supervisor,
        read_timeout_s: float,
        changed: Callable[[], None],
    ) -> None:
        self._nursery = nursery
        self._trees = trees
        self._layers = layers
        self._supervisor = supervisor
        self._read_timeout_s = read_timeout_s
        self._changed = changed
        self._served: dict[str, SavedTree] = {}

    def saved(self) -> tuple[SavedTree, ...]:
        """The trees that are served, for the next daemon."""
        return tuple(self._served.values())

    @asynccontextmanager
    async def mounted(self, entry: Entry, mount_point: Path, note: NoteDevices) -> AsyncIterator[str]:
        """As Driver.mounted says."""
        async with unmounted_at_end(mount_point, "fuse") as driver:
            failure: Exception | None = await self._nursery.start(self._serve, entry, mount_point, note)
            if failure is not None:
                raise failure
            yield driver

    async def _serve(
        self,
        entry: Entry,
        mount_point: Path,
        note: NoteDevices,
        *,
        task_status: trio.TaskStatus[Exception | None],
    ) -> None:
        """Mount a tree, tell so or why not, and serve it to its end."""
        mounted = False
        try:
            async with AsyncExitStack() as stack:
                tree = await self._trees.open(entry.order, stack)
                answers = self._answers(tree.metadata_file, tree.layers)
                connection = await trio.to_thread.run_sync(_connected, entry, mount_point)
                session = RawSession(connection.device_fd, answers, None)
                token = f"{entry.name}-{secrets.token_hex(4)}"
                async with self._answered(session, connection.device_fd, token):
                    await session.initialised.wait()
                    assert session.negotiated is not None
                    self._served[token] = _saved(token, entry, tree, session.negotiated)
                    await note(())
                    await trio.to_thread.run_sync(_attached, connection, mount_point, tree)
                    mounted = True
                    task_status.started(None)
                    await session.gone.wait()
        except Exception as error:  # noqa: BLE001  # it must reach who waits, not end the daemon
            if not mounted:
                task_status.started(error)
            elif isinstance(error, IndexerError | LazyfsError):
                _log.warning("%s: %s", mount_point, message_of(error))
            else:
                _log.exception("a bug in %s", mount_point)

    def go_on(self, inherited: Iterable[InheritedTree]) -> None:
        """Serve trees of a daemon before us, as soon as their layers can be opened again; readers wait."""
        for tree in inherited:
            self._served[tree.saved.token] = tree.saved
            self._nursery.start_soon(self._go_on, tree)

    async def _go_on(self, tree: InheritedTree) -> None:
        saved = tree.saved
        with trio.move_on_after(self._read_timeout_s) as opening:
            async with AsyncExitStack() as stack:
                answers = await self._answers_again(saved, stack)
                opening.deadline = math.inf
                settled = Negotiated(saved.minor, InitFlag(saved.offered))
                session = RawSession(tree.device_fd, answers, settled)
                async with self._answered(session, tree.device_fd, saved.token):
                    await session.gone.wait()
        if opening.cancelled_caught:  # what its readers get now is better than to hang
            _log.error("the mount %s cannot be served any more", saved.name)
            self._end(saved.token, tree.device_fd)

    async def _answers_again(self, saved: SavedTree, stack: AsyncExitStack) -> TreeAnswers:
        while True:
            try:
                async with AsyncExitStack() as attempt:
                    answers = await self._opened_again(saved, attempt)
                    await stack.enter_async_context(attempt.pop_all())
                    return answers
            except (IndexerError, LazyfsError, OSError) as error:
                _log.warning("the mount %s cannot be served yet: %s", saved.name, message_of(error))
            await trio.sleep(_TRY_AGAIN_S)

    async def _opened_again(self, saved: SavedTree, stack: AsyncExitStack) -> TreeAnswers:
        if not await trio.to_thread.run_sync(os.path.isfile, saved.path):
            return await self._answers_anew(saved, stack)
        leases = [self._layers.lease_again(saved.order, *pair) for pair in saved.layers]
        layers = [await stack.enter_async_context(lease) for lease in leases]
        return self._answers(Path(saved.path), layers)

    async def _answers_anew(self, saved: SavedTree, stack: AsyncExitStack) -> TreeAnswers:
        """As before, by a metadata image that is compiled again: a function of the layers' tables."""
        tree = await self._trees.open(saved.order, stack)
        if tree.digests != saved.layers:
            raise NotFound("its metadata image is gone, and its layers are read by other tables now")
        return self._answers(tree.metadata_file, tree.layers)

    def _answers(self, metadata: Path, layers: Sequence[ShownLayer]) -> TreeAnswers:
        contents = Contents([layer.lazy for layer in layers], self._read_timeout_s)
        return TreeAnswers(map_metadata(metadata), contents)

    @asynccontextmanager
    async def _answered(self, session: RawSession, device_fd: int, token: str) -> AsyncIterator[None]:
        self._supervisor.store(_PREFIX + token, device_fd)
        try:
            async with open_tasks() as nursery:
                nursery.start_soon(session.answer)
                try:
                    yield
                finally:
                    session.refuse()
                    session.end()
        finally:
            self._end(token, device_fd)

    def _end(self, token: str, device_fd: int) -> None:
        self._served.pop(token, None)
        self._supervisor.remove(_PREFIX + token)
        os.close(device_fd)
        self._changed()


def _connected(entry: Entry, mount_point: Path) -> Connection:
    make_mount_point(mount_point)
    options = MountOptions(entry.order.image, setuid=True, devices=True)
    return connect(check_mount_point(mount_point), options)


def _attached(connection: Connection, mount_point: Path, tree: OpenTree) -> None:
    """Shows the mount, and lets go of it: while its descriptor is open nobody can unmount."""
    try:
        attach(connection, os.fsencode(mount_point))
        set_read_ahead(os.stat(mount_point).st_dev, tree.read_ahead_kb, tree.knob)  # noqa: PTH116  # answered by us
    except OSError as error:
        raise MountError(f"cannot mount on {mount_point}: {error.strerror}") from error
    finally:
        if connection.mount_fd is not None:
            os.close(connection.mount_fd)


def _saved(token: str, entry: Entry, tree: OpenTree, settled: Negotiated) -> SavedTree:
    return SavedTree(
        token=token,
        name=entry.name,
        minor=settled.minor,
        offered=int(settled.offered),
        order=entry.order,
        path=path_saved(tree.metadata_file),
        layers=tree.digests,
    )
