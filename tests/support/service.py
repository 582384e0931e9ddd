"""`lazyfs daemon` as a test runs it: the real processes, with directories of their own."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fcntl import LOCK_EX, flock
from functools import partial
from pathlib import Path
from typing import Any, Self

import trio

from lazyfs.oci.chain import ChainOrder, chain_name
from lazyfs.service.client import ServiceClient
from tests.support.crash import stopped
from tests.support.mounts import mounts_below, unmount_lazily
from tests.support.service_manager import ServiceManager

PATIENCE_S = 60.0

_MAIN = "from lazyfs.cli.main import main; main()"


class Daemon:
    """A data daemon, which may be killed and started again.

    Args:
        place: a directory for all it needs.
        cache: its cache; one of its own by default.
        flags: further options of the command.
        manager: keeps its descriptors.
    """

    def __init__(
        self,
        place: Path,
        cache: Path | None = None,
        flags: Sequence[str] = (),
        manager: ServiceManager | None = None,
    ) -> None:
        self.root = place / "root"
        self.socket = place / "run" / "daemon.sock"
        self.log = place / "daemon.log"
        self.cache = cache or place / "cache"
        self._flags = flags
        self._manager = manager
        self._keeper: subprocess.Popen | None = None
        place.mkdir(exist_ok=True)

    def start(self) -> Self:
        """Start it, and wait until it answers."""
        self.launch()
        self.ask("mounts")
        return self

    def launch(self) -> None:
        """Start it."""
        environment = os.environ | {"HOME": str(self.root.parent), "LAZYFS_RETRIES": "0"}
        command = [sys.executable, "-c", _MAIN, "daemon", "--root", str(self.root), "--linger", "0"]
        command += ["--socket", str(self.socket), "--cache-dir", str(self.cache), *self._flags]
        command += ["--log-level", "info"]
        kept: Sequence[int] = ()
        if self._manager is not None:
            command, kept = self._manager.wrapped(command), list(self._manager.kept.values())
            environment |= self._manager.environment
        with self.log.open("ab") as log:
            self._keeper = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stderr=log,
                pass_fds=kept,
                env=environment,
            )

    def ask(self, method: str, *arguments: Any) -> Any:
        """What a method of a client gives."""
        return trio.run(partial(getattr(self.client(), method), *arguments))

    def client(self) -> ServiceClient:
        return ServiceClient(self.socket, PATIENCE_S)

    @property
    def worker(self) -> int:
        """The process that does the work."""
        return int(self.ask("statistics")["pid"])

    @property
    def keeper(self) -> subprocess.Popen:
        """The process that keeps the descriptors."""
        assert self._keeper is not None
        return self._keeper

    def kill_worker(self) -> None:
        os.kill(self.worker, signal.SIGKILL)

    def kill_keeper(self) -> None:
        self.keeper.kill()
        self.keeper.wait()

    def kill(self) -> None:
        """Kill both, as the end of a control group does; they need not answer yet."""
        pid = self.keeper.pid
        with stopped(self.keeper):  # it would start another worker
            for worker in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                os.kill(int(worker), signal.SIGKILL)
            self.kill_keeper()
        with (self.root / "lock").open("w") as lock:
            flock(lock, LOCK_EX)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it in order."""
        if self.keeper.poll() is None:
            self.keeper.send_signal(number)
        assert self.keeper.wait(PATIENCE_S) == 0, self.log.read_text()

    def log_text(self) -> str:
        """What it logged."""
        return self.log.read_text()

    def complaints(self) -> list[str]:
        """Warnings and worse."""
        return re.findall(r"^.*(?:WARNING|ERROR|CRITICAL|Traceback).*$", self.log.read_text(), re.MULTILINE)


@contextmanager
def running_daemon(
    place: Path,
    cache: Path | None = None,
    flags: Sequence[str] = (),
    manager: ServiceManager | None = None,
) -> Iterator[Daemon]:
    """A daemon that is ended with the block, in order unless the test has killed it."""
    daemon = Daemon(place, cache, flags, manager).start()
    try:
        yield daemon
        daemon.stop()
    finally:
        left = manager is not None
        if daemon.keeper.poll() is None:
            left = True
            daemon.kill()
        for point in mounts_below(place) if left else ():
            unmount_lazily(point)


def orders_of(
    reference: str, manifest: str, layers: Sequence[str], chain_ids: Sequence[str]
) -> list[ChainOrder]:
    """Orders for one layer, two, ... and all of an image."""
    return [
        ChainOrder(reference, manifest, depth, layers[depth - 1], chain_ids[depth - 1])
        for depth in range(1, len(layers) + 1)
    ]


def name_of(orders: Sequence[ChainOrder]) -> str:
    """The name of the mount for the last of the orders."""
    return chain_name([order.layer for order in orders])
