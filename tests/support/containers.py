"""`lazyfs run` as a test runs it, and what it may leave behind."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.runner import TIMEOUT_S, LazyfsRunner, executable

WAIT_S = 60


@dataclass(frozen=True, slots=True)
class Containers:
    """Runs containers with a home and a cache of its own.

    Attributes:
        runner: gives the environment.
    """

    runner: LazyfsRunner

    @property
    def environment(self) -> dict[str, str]:
        """Of the command."""
        return self.runner.environment() | {"LAZYFS_CACHE_DIR": str(self.runner.cache_dir)}

    @property
    def places(self) -> Path:
        """Where containers live while they run."""
        return self.runner.cache_dir / "containers"

    def __call__(
        self, *words: str | Path, exit_code: int = 0, told: str = "", env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """What `lazyfs WORDS` said, once it has ended with `exit_code`."""
        done = subprocess.run(
            [executable(), *map(str, words)],
            input=told,
            env=self.environment | (env or {}),
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )
        assert done.returncode == exit_code, (
            f"lazyfs {' '.join(map(str, words))}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
        )
        return done

    @contextmanager
    def started(self, *words: str | Path) -> Iterator["subprocess.Popen[str]"]:
        """A `lazyfs run WORDS` that is running, killed at the end if it still is."""
        process = subprocess.Popen(
            [executable(), "run", *map(str, words)],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def pid(self, name: str) -> int:
        """The first process of a container that is running."""
        path = self.places / name / "bundle" / "pid"
        until(lambda: path.exists() and path.read_text() != "", f"{name} starts")
        return int(path.read_text())

    def left(self) -> list[str]:
        """What containers have left behind: their places, processes, and cgroups."""
        found = [path.name for path in self.places.iterdir()] if self.places.exists() else []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = (process / "environ").read_bytes()
            except OSError:
                continue
            if b"LAZYFS_CACHE_DIR=" + os.fsencode(self.runner.cache_dir) in command:
                found.append(f"process {process.name}")
        return found


def until(holds: Callable[[], bool], what: str) -> None:
    """Wait for something that another process does."""
    end = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < end, f"waited in vain: {what}"
        time.sleep(0.02)
