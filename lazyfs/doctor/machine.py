"""The machine that is looked at."""

import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

from msgspec import Struct

from lazyfs.mount.mounts import parse_mount_table

_CAP_SYS_ADMIN: Final = 21
_WHOLE_RANGE: Final = 4294967295


class Machine(Struct, frozen=True):
    """Where to look.

    Attributes:
        root: stands for /.
        uid: who we are.
        search: where programs are, as in PATH.
    """

    root: Path
    uid: int
    search: str

    def path(self, absolute: str) -> Path:
        """Where an absolute path of the machine is."""
        return self.root / absolute.lstrip("/")

    def text(self, absolute: str) -> str | None:
        """The content of a small file; None if it cannot be read."""
        with suppress(OSError):
            return self.path(absolute).read_text("utf-8", "replace")
        return None

    def program(self, name: str) -> str | None:
        """The path of a program; None if there is none."""
        return shutil.which(name, path=self.search)

    @property
    def release(self) -> str:
        """The kernel's release: "6.18.2-amd64"."""
        return (self.text("/proc/sys/kernel/osrelease") or os.uname().release).strip()

    @property
    def kernel(self) -> tuple[int, int]:
        """The kernel's version: (6, 18)."""
        numbers = [part for part in self.release.replace("-", ".").split(".") if part.isdigit()]
        return (int(numbers[0]), int(numbers[1])) if len(numbers) > 1 else (0, 0)

    @property
    def may_mount(self) -> bool:
        """Whether we have CAP_SYS_ADMIN in the user namespace that owns the machine."""
        for line in (self.text("/proc/self/status") or "").splitlines():
            if line.startswith("CapEff:") and not int(line.split()[1], 16) >> _CAP_SYS_ADMIN & 1:
                return False
        words = (self.text("/proc/self/uid_map") or "").split()
        return not words or words == ["0", "0", str(_WHOLE_RANGE)]

    def file_system(self, path: Path) -> str:
        """The type of the file system that a path lies on; "" if that cannot be said."""
        try:
            mounts = parse_mount_table(self.path("/proc/self/mountinfo").read_bytes())
        except OSError:
            return ""
        best, fstype = -1, ""
        for mount in mounts:
            place = os.fsdecode(mount.mount_point)
            if path.is_relative_to(place) and len(place) >= best:
                best, fstype = len(place), os.fsdecode(mount.fstype)
        return fstype


def is_there(path: Path) -> bool:
    """Whether something is at a path.

    Raises:
        OSError: we may not look, as with EACCES.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def is_directory(path: Path) -> bool:
    """Whether a directory is at a path; not where we may not look."""
    with suppress(OSError):
        return stat.S_ISDIR(path.stat().st_mode)
    return False
