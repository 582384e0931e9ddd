"""podman as Debian has it: the one installed here, and a newer one unpacked from its packages."""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from tests.support.debian_tools import installed, tools
from tests.support.lab import Lab


@dataclass(frozen=True, slots=True)
class Release:
    """One podman.

    Attributes:
        version: its first two numbers.
        programs: the directory with podman, and with netavark where it cannot do without.
    """

    version: str
    programs: Path


SUITES = {"4.3": "", "5.4": "trixie"}
"""By version, the suite that has it; "" is the one of this machine."""


def release(lab: Lab, version: str) -> Release:
    """A podman, unpacked when first asked for.

    Raises:
        LabError: it is not installed, or cannot be downloaded.
    """
    if not SUITES[version]:
        return Release(version, installed("podman"))
    unpacked = tools(lab, f"podman-{version}-packages", SUITES[version], ("podman", "netavark"))

    def make(out: Path) -> None:
        out.mkdir()
        for program in ("usr/bin/podman", "usr/lib/podman/netavark"):
            unpacked.copy(program, out / Path(program).name)

    recipe = sha256(bytes(unpacked.home)).hexdigest()[:12]  # the programs name it
    return Release(version, lab.once(f"tools/podman-{version}-{recipe}", make))
