"""daemon: the process that serves data for a snapshotter."""

import logging
import os
from functools import partial
from pathlib import Path
from typing import Final

import click
import trio

from lazyfs.cli.options import PATH, configured
from lazyfs.config import Config
from lazyfs.daemon import run_until_signal
from lazyfs.printable import LineFormatter
from lazyfs.service.daemon import ServiceOptions, run_service
from lazyfs.source.content_store import CONTAINERD_STORE

DEFAULT_ROOT: Final = Path("/var/lib/lazyfs")
DEFAULT_SOCKET: Final = Path("/run/lazyfs/daemon.sock")


@click.command()
@configured
@click.option(
    "--root", type=PATH, default=DEFAULT_ROOT, show_default=True, help="Where mounts and orders are kept."
)
@click.option(
    "--socket", type=PATH, default=DEFAULT_SOCKET, show_default=True, help="Where questions are answered."
)
@click.option(
    "--content-store",
    type=PATH,
    help="containerd's, for layers to be indexed (default: where it usually is).",
)
def daemon(config: Config, root: Path, socket: Path, content_store: Path | None) -> None:
    """Serve the data of lazily mounted containers, in the foreground, until SIGTERM.

    The snapshotter asks it, over a socket that only root may open. It can be killed and started again: what
    was mounted is mounted again.
    """
    for handler in logging.getLogger().handlers:
        handler.setFormatter(LineFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    if content_store is None and CONTAINERD_STORE.is_dir():
        content_store = CONTAINERD_STORE
    options = ServiceOptions(Path(os.path.realpath(root)), socket.absolute(), content_store)
    os.chdir("/")
    trio.run(partial(run_until_signal, partial(run_service, options, config)))
