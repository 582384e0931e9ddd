"""The data daemon killed before steps of its work: a module that its process imports before all else.

The environment names a directory: a file "armed" there lets it die, "died" has the steps that it died before,
a line each. It dies before each step once; its keeper starts it anew.
"""

import functools
import inspect
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

VARIABLE = "LAZYFS_TEST_KILL_STEPS"
_LOADER = "from tests.support import daemon_kill_steps\ndaemon_kill_steps.install()\n"


def prepared(place: Path) -> dict[str, str]:
    """The environment for a daemon that dies; `place` is an empty directory."""
    (place / "sitecustomize.py").write_text(_LOADER)
    root = Path(__file__).parents[2]
    return {VARIABLE: str(place), "PYTHONPATH": f"{place}{os.pathsep}{root}"}


@contextmanager
def deaths(place: Path) -> Iterator[list[str]]:
    """Lets it die in the block; the steps are in the list afterwards."""
    (place / "died").write_text("")
    (place / "armed").touch()
    steps: list[str] = []
    try:
        yield steps
    finally:
        (place / "armed").unlink()
        steps += (place / "died").read_text().split()


def install() -> None:
    """Put the steps into the modules, in the daemon's own process."""
    if "lazyfs.service.worker" not in sys.orig_argv:
        return
    from lazyfs.service import chains, ledger
    from lazyfs.service.drivers import erofs as erofs_driver
    from lazyfs.service.drivers import fuse as fuse_driver

    put_steps(
        Path(os.environ[VARIABLE]),
        (ledger.Ledger, "save", "note"),
        (fuse_driver, "_connected", "connect"),
        (fuse_driver, "_attached", "attach"),
        (erofs_driver, "_mount", "mount"),
        (chains, "_take_away", "unmount"),
    )


def put_steps(place: Path, *points: tuple[Any, str, str]) -> None:
    """Make calls steps: each an attribute of a module or class, and the step's name."""
    step = functools.partial(_step, place, threading.Lock())
    for owner, name, said in points:
        setattr(owner, name, _stepping(getattr(owner, name), said, step))


def _stepping(call: Any, said: str, step: Any) -> Any:
    if inspect.iscoroutinefunction(call):

        @functools.wraps(call)
        async def awaited(*arguments: Any) -> Any:
            step(f"{said}:before")
            result = await call(*arguments)
            step(f"{said}:after")
            return result

        return awaited

    @functools.wraps(call)
    def stepping(*arguments: Any) -> Any:
        step(f"{said}:before")
        result = call(*arguments)
        step(f"{said}:after")
        return result

    return stepping


def _step(place: Path, lock: threading.Lock, name: str) -> None:
    with lock:
        died = place / "died"
        if (place / "armed").exists() and name not in died.read_text().split():
            with died.open("a") as file:
                file.write(f"{name}\n")
            os.kill(os.getpid(), signal.SIGKILL)
