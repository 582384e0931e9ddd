"""Finding programs, and having them read."""

from pathlib import Path
from shutil import which
from typing import Final

from bench.cold.sandbox import Sandbox
from bench.measure import MethodFailed

_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_DOCKER: Final = "--programs FOLDER, with Docker 24 or later"
_FROM: Final = {"docker": _DOCKER, "dockerd": _DOCKER}
"""Where to have programs from that scripts/setup does not install."""


def search_path(programs: Path | None) -> str:
    """Where programs are: in a folder, then in the system's."""
    return f"{programs}:{_PATH}" if programs else _PATH


def need(*names: str, programs: Path | None = None) -> None:
    """See that programs are installed.

    Args:
        names: of programs.
        programs: where they are looked for first.

    Raises:
        MethodFailed: some are not; it says which.
    """
    if missing := [name for name in names if not which(name, path=search_path(programs))]:
        source = _FROM.get(missing[0], "scripts/setup bench")
        raise MethodFailed(f"{', '.join(missing)} not installed: {source}")


def say_versions(box: Sandbox, *names: str) -> None:
    """Run programs in a sandbox to no end but to have them in the page cache.

    Raises:
        MethodFailed: one of them cannot be run.
    """
    for name in names:
        box.run(name, "-v" if name == "containerd-shim-runc-v2" else "--version")
