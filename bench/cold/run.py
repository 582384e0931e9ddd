"""One start, measured: a fresh sandbox, cold caches, the clock, and what was used meanwhile."""

import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from bench.cold.methods.base import Context, Method, Session
from bench.cold.methods.tools import search_path
from bench.cold.probe import Watch
from bench.cold.record import Start
from bench.cold.sandbox import sandbox
from bench.cold.site import Site
from bench.cold.store import Store
from bench.cold.tap import Exchange
from bench.cold.watching import watching
from bench.cold.workload import Workload
from bench.measure import CORES, busy_s, wait_until_quiet
from bench.world import drop_caches


class Caches(StrEnum):
    """What is there already when the clock starts."""

    COLD = "cold"
    """Nothing."""
    WARM = "warm"
    """What a start before brought; the page cache is empty."""
    HOT = "hot"
    """What a start before brought, in the page cache too."""


CGROUPS: Final = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Runner:
    """Measures starts.

    Attributes:
        site: where the registry is.
        store: what it has.
        home: where scratch folders are made.
        caches: measure the second start with the same caches, not the first, unless they are cold.
        registry_down: nobody listens there during the second start.
        programs: where programs are looked for first.
        quiet_wait_s: how long to wait at most for other load to pass.
    """

    site: Site
    store: Store
    home: Path
    caches: Caches = Caches.COLD
    registry_down: bool = False
    programs: Path | None = None
    quiet_wait_s: float = 0.0

    def start(self, method: Method, workload: Workload, name: str) -> Start:
        """One start of a workload by a method, of the image that the registry calls `name`.

        Raises:
            MethodFailed: it did not come to the end.
        """
        with self._context(workload, name) as context, method.session(context) as session:
            try:
                if self.caches is not Caches.COLD:
                    self._go(session, context)
                    session.remove()
                    _write_back(context.scratch)
                if self.caches is not Caches.HOT:
                    drop_caches()
                method.warm_up(context)
                wait_until_quiet(self.quiet_wait_s)
                with self.site.tap.stopped() if self.registry_down else nullcontext():
                    return self._measured(session, context)
            finally:
                session.remove()

    def _go(self, session: Session, context: Context) -> tuple[float, float, float | None]:
        """When it was pulled, ready, and at its end."""
        session.pull()
        pulled_at = time.monotonic()
        process = session.run()
        watch = Watch(process, context.workload, context.mark, self.site.network)
        try:
            return pulled_at, *watch.wait()
        finally:
            if process.poll() is None:
                session.remove()
                _end(process)
            watch.close()

    def _measured(self, session: Session, context: Context) -> Start:
        with watching(context.box.first) as watcher:
            self.site.tap.take()
            busy_before = busy_s()
            start = time.monotonic()
            pulled_at, ready_at, completed_at = self._go(session, context)
            exchanges = self.site.tap.take()
            wall_s = time.monotonic() - start
            others_s = busy_s() - busy_before
        others_s -= watcher.own_s
        end = completed_at or ready_at
        exchanges = [_since(start, exchange) for exchange in exchanges if exchange.start_s <= end]
        return Start(
            pulled_s=pulled_at - start,
            ready_s=ready_at - start,
            completed_s=None if completed_at is None else completed_at - start,
            down=sum(exchange.down for exchange in exchanges),
            requests=sum(exchange.start_s >= 0 for exchange in exchanges),
            processes=watcher.uses,
            others_share=min(max(others_s / (wall_s * CORES), 0.0), 1.0),
            exchanges=exchanges,
        )

    def _context(self, workload: Workload, name: str) -> "AbstractContextManager[Context]":
        reference = f"{self.site.address}/{name}"
        return context_of(self.store, workload, reference, self.home, self.site.enter, self.programs)


@contextmanager
def context_of(
    store: Store,
    workload: Workload,
    reference: str,
    home: Path,
    enter: Callable[[Sequence[str]], list[str]],
    programs: Path | None = None,
) -> Iterator[Context]:
    """A sandbox, a scratch folder and a mark for one start.

    Raises:
        MethodFailed: not root.
    """
    mark = f"bench-{uuid.uuid4().hex[:12]}"
    with TemporaryDirectory(dir=home, prefix="run-") as folder:
        scratch = Path(folder)
        try:
            with sandbox(enter, environment_of(scratch, programs)) as box:
                yield Context(box, scratch, reference, workload, store.configuration(workload), mark)
        finally:
            _remove_cgroups(mark)


def environment_of(scratch: Path, programs: Path | None = None) -> Mapping[str, str]:
    """An environment that leads no tool out of a folder."""
    folders = {"HOME": "home", "TMPDIR": "tmp", "XDG_RUNTIME_DIR": "runtime"}
    for folder in folders.values():
        (scratch / folder).mkdir(mode=0o700)
    own = {key: str(scratch / name) for key, name in folders.items()}
    return {"PATH": search_path(programs), "LC_ALL": "C.UTF-8", **own}


def _since(start: float, exchange: Exchange) -> Exchange:
    """With times that count from the start."""
    end_s = exchange.end_s
    return exchange._replace(
        start_s=round(exchange.start_s - start, 4), end_s=None if end_s is None else round(end_s - start, 4)
    )


def _write_back(folder: Path) -> None:
    """What is dirty could not be dropped from the page cache."""
    subprocess.run(["sync", "--file-system", folder], check=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _remove_cgroups(mark: str) -> None:
    """What a killed runtime left behind."""
    for folder, _, _ in os.walk(CGROUPS, topdown=False):
        if Path(folder).name == mark:
            with suppress(OSError):
                Path(folder).rmdir()
                Path(folder).parent.rmdir()  # "bench", if this was the last
