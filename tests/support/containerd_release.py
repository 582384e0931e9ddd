"""containerd as Debian has it: the one installed here, and newer ones unpacked from their packages."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.support.debian_tools import installed
from tests.support.lab import Lab
from tests.support.lab_build import run

_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_MIRROR = "http://deb.debian.org/debian"


@dataclass(frozen=True, slots=True)
class Release:
    """One containerd.

    Attributes:
        version: its first two numbers.
        programs: the directory with containerd, its shim and ctr.
    """

    version: str
    programs: Path

    @property
    def config_version(self) -> int:
        """Of its configuration file."""
        return 3 if self.version.startswith("2") else 2


SUITES = {"1.6": "", "1.7": "trixie", "2.1": "sid"}
"""By version, the suite that has it; "" is the one of this machine."""


def release(lab: Lab, version: str) -> Release:
    """A containerd, unpacked when first asked for.

    Raises:
        LabError: it is not installed, or cannot be downloaded.
    """
    if not SUITES[version]:
        return Release(version, installed("containerd"))
    unpacked = lab.once(f"tools/containerd-{version}-1", lambda out: _unpack(SUITES[version], out))
    return Release(version, unpacked / "usr" / "bin")


def _unpack(suite: str, out: Path) -> None:
    apt = out.with_suffix(".apt")
    shutil.rmtree(apt, ignore_errors=True)
    (apt / "lists" / "partial").mkdir(parents=True)
    (apt / "cache" / "archives" / "partial").mkdir(parents=True)
    (apt / "sources").write_text(f"deb [signed-by={_KEYRING}] {_MIRROR} {suite} main\n")
    options = [
        f"--option={option}"
        for option in (
            *(f"Dir::State::Lists={apt}/lists", f"Dir::Cache={apt}/cache", "Acquire::Languages=none"),
            *(f"Dir::Etc::SourceList={apt}/sources", "Dir::Etc::SourceParts=/dev/null"),
            *("Dir::State::Status=/dev/null", "APT::Sandbox::User=root"),
        )
    ]
    run("apt-get", "--quiet=2", *options, "update")
    run("apt-get", "--quiet=2", *options, "download", "containerd", cwd=apt)
    (package,) = apt.glob("containerd_*.deb")
    run("dpkg", "-x", str(package), str(out))
    shutil.rmtree(apt)
