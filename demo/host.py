"""What the demo's image is made from: this machine's Python, its libraries, a shell and a few tools."""

import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

SHELL = Path("/bin/sh")
TOOLS = ("ls", "cat", "sha256sum")
# Packages of the standard library that a program hardly ever imports.
BULK = ("idlelib", "lib2to3", "ensurepip", "pydoc_data", "tkinter", "turtledemo", "test")
_LEFT_OUT = {"site-packages", "dist-packages", *BULK}
_LIBRARY = re.compile(r"(?:=>)?\s*(/\S+) \(0x", re.ASCII)


def interpreter() -> Path:
    """The executable of the Python that runs this, outside of any virtual environment, without symlinks."""
    base = getattr(sys, "_base_executable", None) or sys.executable
    return Path(base).resolve()


def standard_library() -> Path:
    """The directory of the standard library."""
    return Path(sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix}))


def tools() -> list[Path]:
    """The shell and the tools, as PATH has them."""
    return [SHELL, *(Path(found) for name in TOOLS if (found := shutil.which(name)))]


def library_files() -> list[Path]:
    """The standard library's files, without what is bulk and what pip installed."""
    top = standard_library()
    wanted = sorted(
        path for path in top.iterdir() if path.name not in _LEFT_OUT and not path.name.startswith("config-")
    )
    return [file for path in wanted for file in _files(path) if ".opt-" not in file.name]


def bulk_files() -> list[Path]:
    """The sources of what hardly any program imports."""
    top = standard_library()
    return [path for name in BULK for path in _files(top / name) if path.suffix == ".py"]


def loader() -> Path:
    """The dynamic loader that this Python names."""
    (found,) = {path for path in shared_libraries([interpreter()]) if path.name.startswith("ld-")}
    return found


def shared_libraries(programs: Iterable[Path]) -> list[Path]:
    """The shared libraries, and the loader, that programs and extension modules need, as ldd finds them."""
    found: set[Path] = set()
    for program in programs:
        listing = subprocess.run(["ldd", program], check=False, capture_output=True, text=True).stdout
        found.update(Path(match[1]) for match in _LIBRARY.finditer(listing))
    return sorted(found)


def closure(path: Path) -> Iterator[Path]:
    """All that must exist for `path` to be found: its directories, every symlink on the way, the file."""
    current, rest = Path("/"), list(path.parts[1:])
    while rest:
        part = rest.pop(0)
        current = current.parent if part == ".." else current / part
        if current == Path("/"):
            continue
        yield current
        if current.is_symlink():
            target = current.readlink()
            rest = [*(target.parts[1:] if target.is_absolute() else target.parts), *rest]
            current = Path("/") if target.is_absolute() else current.parent


def _files(top: Path) -> list[Path]:
    if not top.is_dir():
        return [top] if top.exists() else []
    return sorted(path for path in top.rglob("*") if path.is_file())
