"""Finding programs."""

from shutil import which
from typing import Final

from bench.measure import MethodFailed

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def need(*names: str) -> None:
    """See that programs are installed.

    Raises:
        MethodFailed: some are not; it says which.
    """
    if missing := [name for name in names if not which(name, path=PATH)]:
        raise MethodFailed(f"{', '.join(missing)} not installed: scripts/setup bench")
