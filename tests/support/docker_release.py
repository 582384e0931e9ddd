"""docker as Debian has it, unpacked from its packages: the one of this machine may be too old."""

from hashlib import sha256
from pathlib import Path
from typing import Final

from tests.support.debian_tools import tools
from tests.support.lab import Lab

_SUITE: Final = "trixie"
_PROGRAMS: Final = ("usr/sbin/dockerd", "usr/bin/docker")


def docker_programs(lab: Lab) -> Path:
    """The directory of a docker and a dockerd that have the containerd image store.

    Raises:
        LabError: they cannot be downloaded.
    """
    unpacked = tools(lab, "docker-packages", _SUITE, ("docker.io", "docker-cli"))

    def make(out: Path) -> None:
        out.mkdir()
        for program in _PROGRAMS:
            unpacked.copy(program, out / Path(program).name)

    recipe = sha256(bytes(unpacked.home)).hexdigest()[:12]  # the programs name it
    return lab.once(f"tools/docker-{recipe}", make)
