"""daemon: the process that serves data for a snapshotter."""

import os
import sys
from pathlib import Path
from typing import Final

import click

from lazyfs.cli.options import PATH, Seconds, configured
from lazyfs.config import Config
from lazyfs.service.options import CONTAINERD_STORE, HUNG_AFTER_S, LINGER_S, ServiceOptions, encode_options

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
@click.option(
    "--driver", type=click.Choice(["auto", "erofs", "fuse"]), default="auto", show_default=True,
    help="Who reads the metadata: the kernel (erofs) or the daemon (fuse).",
)  # fmt: skip
@click.option(
    "--leave", is_flag=True,
    help="At SIGTERM, leave everything mounted: for a service manager that keeps our descriptors.",
)  # fmt: skip
@click.option(
    "--hung-after", type=Seconds(min=0), default=HUNG_AFTER_S, show_default=True, metavar="SECONDS",
    help="Without a sign of life for so long, the process that works is killed and started anew; 0: never.",
)  # fmt: skip
@click.option(
    "--linger", type=Seconds(min=0), default=LINGER_S, show_default=True, metavar="SECONDS",
    help="Keep a mount that nobody uses any more for so long: the next container starts faster.",
)  # fmt: skip
@click.option(
    "--layer-store", type=PATH, metavar="DIR",
    help="Show layers there to Podman and CRI-O, made if need be; docs/podman.md says how these are told.",
)  # fmt: skip
def daemon(
    config: Config,
    root: Path,
    socket: Path,
    content_store: Path | None,
    driver: str,
    leave: bool,
    hung_after: float,
    linger: float,
    layer_store: Path | None,
) -> None:
    """Serve the data of lazily mounted containers, in the foreground, until SIGTERM.

    The snapshotter asks it, over a socket that only root may open; Podman looks into --layer-store. Two
    processes: a small one keeps the connections to the kernel, and has the other one, which does the work,
    go on where it was killed: containers that are reading notice nothing. At SIGTERM everything is
    unmounted; at SIGHUP nothing is.
    """
    if content_store is None and CONTAINERD_STORE.is_dir():
        content_store = CONTAINERD_STORE
    root = Path(os.path.realpath(root))
    store = Path(os.path.realpath(layer_store)) if layer_store else None
    options = ServiceOptions(root, socket.absolute(), content_store, driver, hung_after, linger, store)
    told = os.memfd_create("lazyfs-daemon", 0)
    os.write(told, encode_options(options, config))
    os.chdir("/")
    sys.stdout.flush()
    # A new program, so that the process that must not die is small.
    module = "lazyfs.service.survival.keeper"
    words = [sys.executable, "-P", "-m", module, str(told), *(["--leave"] if leave else [])]
    os.execv(sys.executable, words)  # noqa: S606  # no shell is wanted: it is our own interpreter
