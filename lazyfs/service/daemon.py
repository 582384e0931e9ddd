"""The data daemon: puts forest, images, chains and server together, and takes them down again.

At its end, by SIGTERM, everything is unmounted; what is in use goes lazily, and reads of it that the page
cache cannot answer fail from then on. Orders stay: the next daemon makes all mounts again.
"""

import fcntl
import logging
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import trio

from lazyfs.assembly import open_cache
from lazyfs.config import Config
from lazyfs.errors import BadReference, MountError
from lazyfs.image.fetcher import FetchSettings
from lazyfs.image.tasks import open_tasks
from lazyfs.mount.forest import Forest
from lazyfs.mount.forest_mount import serve_forest, take_down
from lazyfs.mount.mounts import Mount, read_mount_table
from lazyfs.service.chains import Chains
from lazyfs.service.erofs_driver import ErofsDriver
from lazyfs.service.images import Images
from lazyfs.service.indexing import IndexQueue
from lazyfs.service.layers import Layers
from lazyfs.service.ledger import Ledger
from lazyfs.service.protocol import is_name, parse_order
from lazyfs.service.server import answer_questions, listen

_log = logging.getLogger(__name__)

_FOREST: Final = "layers"
_MOUNTS: Final = "mounts"


@dataclass(frozen=True, slots=True)
class ServiceOptions:
    """How the daemon is started.

    Attributes:
        root: where its mounts and orders are.
        socket: where it listens.
        content_store: containerd's content store, whose blobs need not be downloaded to be indexed; or None.
    """

    root: Path
    socket: Path
    content_store: Path | None = None


async def run_service(options: ServiceOptions, config: Config) -> None:
    """Serve until cancelled.

    Raises:
        LazyfsError: it cannot begin; or the forest's mount was taken from us.
    """
    with _owned(options.root):
        cache = await trio.to_thread.run_sync(open_cache, config)
        await trio.to_thread.run_sync(_take_down_leftovers, options.root)
        ledger = Ledger(options.root)
        entries = await trio.to_thread.run_sync(ledger.load)
        async with _opened_forest(options.root / _FOREST, config) as forest, open_tasks() as nursery:
            images = Images(nursery, config, cache)
            layers = Layers(nursery, forest, cache, FetchSettings(timeout_s=config.read_timeout_s))
            driver = ErofsDriver(layers, options.root / _FOREST, cache)
            chains = Chains(nursery, images, driver, ledger, options.root / _MOUNTS)
            queue = IndexQueue(images, config, options.content_store)
            desk = Desk(images, layers, chains, queue)
            with listen(options.socket) as listener:
                nursery.start_soon(queue.run)
                nursery.start_soon(chains.remake, entries)
                await answer_questions(listener, desk.answer)


class Desk:
    """Answers questions."""

    def __init__(self, images: Images, layers: Layers, chains: Chains, queue: IndexQueue) -> None:
        self._images = images
        self._layers = layers
        self._chains = chains
        self._queue = queue

    async def answer(self, question: Mapping[str, Any]) -> Mapping[str, Any]:
        """The answer to a question; `lazyfs.service.protocol` lists them.

        Raises:
            BadReference: it is none.
            IndexerError, LazyfsError: what was ordered cannot be done.
        """
        match question:
            case {"do": "assess", "order": fields}:
                why = await self._images.assess(parse_order(fields))
                return {"lazy": False, "why": why} if why else {"lazy": True}
            case {"do": "mount", "order": fields}:
                mounted = await self._chains.mount(parse_order(fields))
                return {"name": mounted.name, "path": str(mounted.path), "driver": mounted.driver}
            case {"do": "release", "name": str(name)}:
                await self._chains.release(name)
                return {}
            case {"do": "keep", "names": list(names)} if all(map(is_name, names)):
                return {"released": await self._chains.keep(names)}
            case {"do": "index", "order": fields}:
                return {"queued": self._queue.add(parse_order(fields))}
            case {"do": "list"}:
                return {"mounts": self._chains.listed()}
            case {"do": "stats"}:
                return self._statistics()
        raise BadReference(f"no such question: {str(question)[:200]}")

    def _statistics(self) -> dict[str, Any]:
        counts = [layer.statistics() for layer in self._layers.open_layers()]
        return {
            "pid": os.getpid(),
            "mounts": len(self._chains.listed()),
            "images": len(self._images.open_images()),
            "layers": len(counts),
            "indexing": self._queue.statistics()._asdict(),
            "reads": {
                "hits": sum(count.hits for count in counts),
                "misses": sum(count.misses for count in counts),
                "bytes": sum(count.bytes_served for count in counts),
                "failures": sum(count.fetched.failures for count in counts),
            },
            "sources": [asdict(image.workshop.statistics()) for image in self._images.open_images()],
        }


@contextmanager
def _owned(root: Path) -> Iterator[None]:
    """Makes the directories, and sees that no other daemon has them."""
    try:
        for path in (root, root / _FOREST, root / _MOUNTS):
            if not _is_mount_point(path):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise MountError(f"cannot use {root}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MountError(f"another data daemon uses {root}") from None
        yield
    finally:
        os.close(lock)


def _is_mount_point(path: Path) -> bool:
    """Whether something is mounted there; a mount whose daemon is dead is not to be asked."""
    return any(mount.mount_point == os.fsencode(path) for mount in read_mount_table())


def _take_down_leftovers(root: Path) -> None:
    """Unmount what a predecessor left, who is dead: whatever uses it can read what the kernel has of it."""
    tops = (os.fsencode(root / _MOUNTS) + b"/", os.fsencode(root / _FOREST))
    points = {mount.mount_point for mount in read_mount_table() if mount.mount_point.startswith(tops)}
    for point in sorted(points, reverse=True):
        _log.info("%s was left by another daemon", os.fsdecode(point))
        take_down(Path(os.fsdecode(point)))
    for path in (root / _MOUNTS).iterdir():
        path.rmdir()


@asynccontextmanager
async def _opened_forest(directory: Path, config: Config) -> AsyncIterator[Forest]:
    """A forest that is shown for longer than what is in the block: unmounting trees takes answers.

    Raises:
        MountError: it cannot be mounted, or was unmounted by others.
    """
    forest = Forest()
    scope = trio.CancelScope(shield=True)
    async with open_tasks() as nursery:
        await nursery.start(_show, scope, forest, directory, config.read_timeout_s)
        try:
            yield forest
        finally:
            scope.cancel()


async def _show(
    scope: trio.CancelScope,
    forest: Forest,
    directory: Path,
    read_timeout_s: float,
    *,
    task_status: trio.TaskStatus[Mount],
) -> None:
    with scope:
        await serve_forest(forest, directory, read_timeout_s, task_status=task_status)
    if not scope.cancel_called:
        raise MountError(f"somebody unmounted {directory}")
