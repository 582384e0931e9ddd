"""Finding programs, and having them read."""

from shutil import which
from typing import Final

from bench.cold.sandbox import Sandbox
from bench.measure import MethodFailed

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def need(*names: str) -> None:
    """See that programs are installed.

    Raises:
        MethodFailed: some are not; it says which.
    """
    if missing := [name for name in names if not which(name, path=PATH)]:
        raise MethodFailed(f"{', '.join(missing)} not installed: scripts/setup bench")


def say_versions(box: Sandbox, *names: str) -> None:
    """Run programs in a sandbox to no end but to have them in the page cache.

    Raises:
        MethodFailed: one of them cannot be run.
    """
    for name in names:
        box.run(name, "-v" if name == "containerd-shim-runc-v2" else "--version")
