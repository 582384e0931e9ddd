"""snapshotter: containerd's door to lazily mounted images."""

import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from socket import MSG_DONTWAIT
from socket import socket as Socket  # noqa: N812  # one of our options is called so
from typing import Final

import click
import trio
from msgspec.structs import replace

from lazyfs.cli.options import PATH, configured_by
from lazyfs.cli.service import DEFAULT_SOCKET as DAEMON_SOCKET
from lazyfs.config import Config
from lazyfs.daemon.ending import run_until_signal
from lazyfs.image.tasks import open_tasks
from lazyfs.log import start_log
from lazyfs.metrics import serve_metrics
from lazyfs.service.client import ServiceClient
from lazyfs.service.survival import descriptors
from lazyfs.snapshotter.image_service import serving_images
from lazyfs.snapshotter.metrics import SnapshotterCounts
from lazyfs.snapshotter.run import run_snapshotter

DEFAULT_ROOT: Final = Path("/var/lib/lazyfs/snapshotter")
DEFAULT_SOCKET: Final = Path("/run/lazyfs/snapshotter.sock")
CONTAINERD_SOCKET: Final = Path("/run/containerd/containerd.sock")

_SOON_S: Final = 3.0  # a pull goes on without us if the daemon is away for longer
_PATIENT_S: Final = 60.0  # a container's start is not given up sooner


@click.command()
@configured_by()
@click.option("--root", type=PATH, default=DEFAULT_ROOT, show_default=True, help="Where snapshots are kept.")
@click.option(
    "--socket", type=PATH, default=DEFAULT_SOCKET, show_default=True, help="Where containerd finds it."
)
@click.option(
    "--daemon",
    type=PATH,
    default=DAEMON_SOCKET,
    show_default=True,
    help="Where the daemon that serves the data answers.",
)
@click.option(
    "--image-service", type=PATH, metavar="SOCKET",
    help="Hand the kubelet's pulls on from there: private images are then lazy by their pull secrets.",
)  # fmt: skip
@click.option(
    "--containerd", type=PATH, default=CONTAINERD_SOCKET, show_default=True,
    help="Where containerd answers: for --image-service, and the layers that it asks us for.",
)  # fmt: skip
@click.option("--metrics", metavar="[HOST:]PORT", help="Tell counts to Prometheus there, on loopback.")
def snapshotter(
    config: Config,
    root: Path,
    socket: Path,
    daemon: Path,
    image_service: Path | None,
    containerd: Path,
    metrics: str | None,
) -> None:
    """Keep containerd's snapshots, in the foreground, until SIGTERM.

    An image that has an index is not pulled: its containers start at once, and `lazyfs daemon` fetches what
    they read. Any other image is pulled as usual. docs/containerd.md says how containerd is told.
    """
    sockets = [os.path.realpath(path) for path in (socket, daemon, containerd, image_service) if path]
    if len(set(sockets)) < len(sockets):
        raise click.UsageError("--socket, --daemon, --containerd and --image-service are different sockets")
    counts = SnapshotterCounts()
    start_log(config.log_level)
    if metrics is not None:
        config = replace(config, snapshotter_metrics=metrics)
    address = config.snapshotter_metrics
    soon = ServiceClient(daemon.absolute(), patience_s=_SOON_S, again=counts.reconnected)
    images = serving_images(image_service.absolute(), containerd, soon) if image_service else None
    run = partial(
        run_snapshotter,
        Path(os.path.realpath(root)),
        socket.absolute(),
        soon,
        ServiceClient(daemon.absolute(), patience_s=_PATIENT_S, again=counts.reconnected),
        counts=counts,
        tell=partial(serve_metrics, address) if address else None,
        images=images,
        containerd=containerd,
        ready=_say_ready,
    )
    trio.run(partial(run_until_signal, partial(_with_signs_of_life, run)))


async def _with_signs_of_life(run: Callable[[], Awaitable[None]]) -> None:
    """Show the service manager, if it wants to see it, that our event loop turns."""
    manager = descriptors.supervisor(os.environ)
    every_s = descriptors.watchdog_s(os.environ, os.getpid())
    async with open_tasks() as nursery:
        if manager is not None and every_s:
            nursery.start_soon(_beat, manager, every_s)
        await run()
        nursery.cancel_scope.cancel()


async def _beat(manager: Socket, every_s: float) -> None:
    with manager:
        while True:
            with suppress(OSError):
                manager.send(descriptors.ALIVE, MSG_DONTWAIT)
            await trio.sleep(every_s)


def _say_ready() -> None:
    """Tell the service manager (sd_notify(3)), which then starts containerd."""
    manager = descriptors.supervisor(os.environ)
    if manager is not None:
        with manager, suppress(OSError):
            descriptors.send(manager, descriptors.READY)
