"""Puts the snapshotter together and serves it: records, directories, the daemon, the socket."""

from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path

import grpc
import trio
from prometheus_client import Metric

from lazyfs.errors import ConfigError
from lazyfs.flock import directory_owned
from lazyfs.image.tasks import open_tasks
from lazyfs.snapshotter.chains import BoundedChains, Chains
from lazyfs.snapshotter.diff_service import differ_of
from lazyfs.snapshotter.directories import Directories
from lazyfs.snapshotter.mapped_lowers import MappedLowers
from lazyfs.snapshotter.metastore import Metastore
from lazyfs.snapshotter.metrics import SnapshotterCounts, snapshotter_metrics
from lazyfs.snapshotter.model import DiskRefused
from lazyfs.snapshotter.mounts import overlay_options
from lazyfs.snapshotter.server import serving
from lazyfs.snapshotter.snapshotter import Snapshotter

Tell = Callable[[Callable[[], Awaitable[Iterable[Metric]]]], Awaitable[None]]
"""Tells whoever asks what it can collect, until cancelled."""


async def run_snapshotter(
    root: Path,
    socket: Path,
    soon: Chains,
    patient: Chains,
    *,
    counts: SnapshotterCounts | None = None,
    tell: Tell | None = None,
    images: AbstractAsyncContextManager[None] | None = None,
    containerd: Path | None = None,
    ready: Callable[[], None] = lambda: None,
    step: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve until cancelled.

    Args:
        root: where records and directories are kept; an absolute path.
        socket: where containerd finds us.
        soon: the daemon, for what is not worth waiting for if it is away.
        patient: the daemon, for mounts.
        counts: told of what is done.
        tell: serves what it is given to collect, as long as this runs.
        images: serves images, as long as this runs; entered once the snapshotter answers.
        containerd: its socket; layers of what snapshots change are made if it is given.
        ready: called once containerd may come.
        step: told each step before it is taken; for tests.

    Raises:
        ConfigError: the root or the socket cannot be used.
    """
    with _owned(root), closing(Metastore(root / "snapshots.db")) as store:
        directories = _directories(root)
        counts = counts or SnapshotterCounts()
        chains = BoundedChains(soon, patient, counts)
        async with open_tasks() as nursery:
            mapped = MappedLowers(root / "mapped", nursery)
            snapshotter = Snapshotter(
                store, directories, chains, overlay_options(), mapped, nursery, counts=counts, step=step
            )
            await snapshotter.start()
            with _differs(root, containerd, snapshotter) as differs:
                async with serving(snapshotter, socket, counts, differs), images or nullcontext():
                    if tell is not None:
                        nursery.start_soon(tell, partial(_collect, snapshotter, counts))
                    ready()
                    await trio.sleep_forever()


@contextmanager
def _differs(
    root: Path, containerd: Path | None, snapshotter: Snapshotter
) -> Iterator[list[grpc.GenericRpcHandler]]:
    if containerd is None:
        yield []
        return
    token = trio.lowlevel.current_trio_token()

    def namespace_of(number: int) -> str:
        return trio.from_thread.run(snapshotter.namespace, number, trio_token=token)

    with differ_of(root, containerd, namespace_of) as differ:
        yield [differ]


def _directories(root: Path) -> Directories:
    try:
        return Directories(root / "snapshots")
    except DiskRefused as error:
        raise ConfigError(f"{root}: cannot keep snapshots there: {error}") from error


async def _collect(snapshotter: Snapshotter, counts: SnapshotterCounts) -> Iterable[Metric]:
    return snapshotter_metrics(counts, await snapshotter.kinds())


@contextmanager
def _owned(root: Path) -> Iterator[None]:
    """The root for us alone: two processes would give the same ids to different snapshots."""
    if set(str(root)) & set(":,\\"):
        raise ConfigError(f'{root}: overlayfs takes no paths with ":", "," or "\\"')
    with ExitStack() as stack:
        try:
            owned = stack.enter_context(directory_owned(root))
        except OSError as error:
            raise ConfigError(f"{root}: cannot keep snapshots there: {error.strerror}") from error
        if not owned:
            raise ConfigError(f"{root}: another snapshotter keeps its snapshots there")
        yield
