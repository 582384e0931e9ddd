"""The programs that run containers."""

import subprocess
from collections.abc import Iterator
from typing import Final

from lazyfs.doctor.findings import Finding, ok, problem, warning
from lazyfs.doctor.machine import Machine

_TIMEOUT_S: Final = 20
_NAMES: Final = ("runc", "crun")


def check_runtimes(machine: Machine) -> Iterator[Finding]:
    """runc, crun: one of them is enough, and only for `lazyfs run`."""
    found = [path for name in _NAMES if (path := machine.program(name))]
    if not found:
        yield warning("runtime", "neither runc nor crun is installed", "install one, for `lazyfs run`")
    for path in found:
        try:
            done = subprocess.run(
                [path, "--version"], capture_output=True, check=True, timeout=_TIMEOUT_S, text=True
            )
        except (OSError, subprocess.SubprocessError) as error:
            yield problem("runtime", f"{path} does not run: {error}", f"install {path} anew")
        else:
            yield ok("runtime", f"{path}: {done.stdout.splitlines()[0] if done.stdout else 'no version'}")
