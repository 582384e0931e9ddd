"""One start, measured: a fresh sandbox, cold caches, the clock, and what was used meanwhile."""

import os
import resource
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from bench.cold.methods.base import Context, Method, Session
from bench.cold.methods.tools import PATH
from bench.cold.probe import Watch
from bench.cold.record import Start
from bench.cold.sandbox import Use, sandbox
from bench.cold.site import Site
from bench.cold.store import Store
from bench.cold.workload import Workload
from bench.measure import CORES, MethodFailed, busy_s, wait_until_quiet
from bench.world import drop_caches

CGROUPS: Final = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Runner:
    """Measures starts.

    Attributes:
        site: where the registry is.
        store: what it has.
        home: where scratch folders are made.
        warm: measure the second start with the same caches, not the first.
        quiet_wait_s: how long to wait at most for other load to pass.
    """

    site: Site
    store: Store
    home: Path
    warm: bool = False
    quiet_wait_s: float = 0.0

    def start(self, method: Method, workload: Workload, name: str) -> Start:
        """One start of a workload by a method, of the image that the registry calls `name`.

        Raises:
            MethodFailed: it did not come to the end.
        """
        with self._context(workload, name) as context, method.session(context) as session:
            try:
                if self.warm:
                    self._go(session, context)
                    session.remove()
                    _write_back(context.scratch)
                drop_caches()
                method.warm_up(context)
                wait_until_quiet(self.quiet_wait_s)
                return self._measured(session, context)
            finally:
                session.remove()

    def _go(self, session: Session, context: Context) -> tuple[float, float, float | None, float]:
        """When it was pulled, ready and at its end, and the CPU seconds of the commands that pulled."""
        before = _children_s()
        session.pull()
        pulled_at, tools_cpu_s = time.monotonic(), _children_s() - before
        process = session.run()
        try:
            ready_at, completed_at = Watch(process, context.workload, context.mark, self.site.network).wait()
        finally:
            if process.poll() is None:
                session.remove()
                _end(process)
        return pulled_at, ready_at, completed_at, tools_cpu_s

    def _measured(self, session: Session, context: Context) -> Start:
        context.box.forget_peaks()
        self.site.tap.take()
        used_before = _by_name(context.box.uses())
        busy_before, children_before = busy_s(), _children_s()
        start = time.monotonic()
        pulled_at, ready_at, completed_at, tools_cpu_s = self._go(session, context)
        wall_s = time.monotonic() - start
        end = completed_at or ready_at
        exchanges = [
            exchange._replace(
                start_s=round(exchange.start_s - start, 4),
                end_s=None if exchange.end_s is None else round(exchange.end_s - start, 4),
            )
            for exchange in self.site.tap.take()
            if exchange.start_s <= end
        ]
        daemons = [use for use in _since(used_before, context.box.uses()) if use.peak_bytes]
        own_s = _children_s() - children_before + sum(use.cpu_s for use in daemons)
        others = busy_s() - busy_before - own_s
        return Start(
            pulled_s=pulled_at - start,
            ready_s=ready_at - start,
            completed_s=None if completed_at is None else completed_at - start,
            down=sum(exchange.down for exchange in exchanges),
            requests=sum(exchange.start_s >= 0 for exchange in exchanges),
            tools_cpu_s=tools_cpu_s,
            daemons=daemons,
            others_share=min(max(others / (wall_s * CORES), 0.0), 1.0),
            exchanges=exchanges,
        )

    @contextmanager
    def _context(self, workload: Workload, name: str) -> Iterator[Context]:
        mark = f"bench-{uuid.uuid4().hex[:12]}"
        with TemporaryDirectory(dir=self.home, prefix="run-") as folder:
            scratch = Path(folder)
            try:
                with sandbox(self.site.enter, environment_of(scratch)) as box:
                    reference = f"{self.site.address}/{name}"
                    yield Context(box, scratch, reference, workload, self.store.configuration(workload), mark)
            finally:
                _remove_cgroups(mark)


def environment_of(scratch: Path) -> Mapping[str, str]:
    """An environment that leads no tool out of a folder."""
    folders = {"HOME": "home", "TMPDIR": "tmp", "XDG_RUNTIME_DIR": "runtime"}
    for folder in folders.values():
        (scratch / folder).mkdir(mode=0o700)
    return {"PATH": PATH, "LC_ALL": "C.UTF-8", **{key: str(scratch / name) for key, name in folders.items()}}


def _by_name(uses: list[Use]) -> dict[str, Use]:
    """The uses of equally named processes, added."""
    added: dict[str, Use] = {}
    for use in uses:
        so_far = added.get(use.name, Use(use.name, 0.0, 0))
        added[use.name] = Use(use.name, so_far.cpu_s + use.cpu_s, so_far.peak_bytes + use.peak_bytes)
    return added


def _since(before: Mapping[str, Use], uses: list[Use]) -> list[Use]:
    """What was used since then."""
    now = _by_name(uses)
    return [
        use._replace(cpu_s=round(max(use.cpu_s - (before[name].cpu_s if name in before else 0.0), 0.0), 2))
        for name, use in sorted(now.items())
    ]


def _children_s() -> float:
    """CPU seconds of the commands that ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _write_back(folder: Path) -> None:
    """What is dirty could not be dropped from the page cache."""
    subprocess.run(["sync", "--file-system", folder], check=True)


def _end(process: "subprocess.Popen[bytes]") -> None:
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
