"""Programs of Debian: those of this machine, and later ones, unpacked from their packages, not installed."""

import shutil
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from tests.support.lab import Lab
from tests.support.lab_build import LabError, run


@dataclass(frozen=True, slots=True)
class Tools:
    """Programs of a later release.

    Attributes:
        home: where their packages and all they depend on are unpacked.
    """

    home: Path

    @property
    def loader(self) -> Path:
        """The dynamic loader, which stands among the libraries."""
        (loader,) = self.home.glob("usr/lib/*-linux-gnu/ld-linux-*.so.*")
        return loader

    def command(self, name: str) -> list[str]:
        """How one of them is run: by its own loader, with its own libraries."""
        program = self.home / "usr" / "bin" / name
        return [str(self.loader), "--library-path", str(self.loader.parent), str(program)]

    def copy(self, program: str, target: Path) -> None:
        """Copy one of them so that it finds loader and libraries by itself, as one that starts itself must.

        Args:
            program: its path below `home`.
            target: where it is put.
        """
        shutil.copy(self.home / program, target)
        libraries = ("--force-rpath", "--set-rpath", str(self.loader.parent))
        run("patchelf", "--set-interpreter", str(self.loader), *libraries, str(target))


def tools(lab: Lab, name: str, suite: str, packages: tuple[str, ...]) -> Tools:
    """Programs, unpacked when first asked for.

    Args:
        lab: keeps them.
        name: under which; another set of packages under this name replaces it.
        suite: the release.
        packages: what has them.
    """
    recipe = sha256(" ".join((suite, *packages)).encode()).hexdigest()[:12]

    def make(out: Path) -> None:
        include = f"--include={','.join(packages)}"
        run("mmdebstrap", "--quiet", "--variant=extract", include, suite, str(out))
        for part in ("usr/share", "usr/libexec", "var", "etc"):
            shutil.rmtree(out / part, ignore_errors=True)

    return Tools(lab.once(f"tools/{name}-{recipe}", make))


def installed(program: str) -> Path:
    """The directory of a program of this machine.

    Raises:
        LabError: it is not installed.
    """
    found = shutil.which(program)
    if found is None:
        raise LabError(f"{program} is missing: run scripts/setup test")
    return Path(found).parent
