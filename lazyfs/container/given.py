"""What a container is given beside its image: directories and devices of the host, memory to write to."""

import os
import stat
from pathlib import Path
from typing import Final, NamedTuple

from msgspec import Struct

from lazyfs.errors import ContainerError

DEFAULT_SHM: Final = 64 << 20  # as docker's

_READ_WRITE: Final = {"": False, "rw": False, "ro": True}
_UNITS: Final = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_LONGEST_NUMBER: Final = 15
_SWITCHES: Final = {"ro": "rw", "suid": "nosuid", "dev": "nodev", "exec": "noexec"}
_SETTINGS: Final = frozenset({"size", "mode", "uid", "gid", "nr_inodes"})  # tmpfs(5)
_ACCESS: Final = frozenset("rwm")


class Volume(NamedTuple):
    """A directory or file of the host, shown in a container.

    Attributes:
        source: where it is on the host, absolute.
        target: where in the container, absolute.
        read_only: whether it cannot be written there.
    """

    source: Path
    target: str
    read_only: bool


class Tmpfs(NamedTuple):
    """A directory in memory.

    Attributes:
        target: where in the container, absolute.
        options: of its mount.
    """

    target: str
    options: tuple[str, ...]


class Device(Struct, frozen=True):
    """A device of the host.

    Attributes:
        source: where it is on the host, absolute.
        target: where in the container, absolute.
        access: of "r", "w" and "m", what the container's cgroup permits.
        status: of the source.
    """

    source: Path
    target: str
    access: str
    status: os.stat_result

    @property
    def kind(self) -> str:
        """As mknod(1) calls it: "b" or "c"."""
        return "b" if stat.S_ISBLK(self.status.st_mode) else "c"


def parse_volume(text: str) -> Volume:
    """A volume written SOURCE:TARGET[:ro|rw].

    Raises:
        ContainerError: it makes no sense, or there is no such source.
    """
    source, _, rest = text.partition(":")
    target, _, mode = rest.partition(":")
    if not source or not target.startswith("/") or mode not in _READ_WRITE:
        raise ContainerError(f"{text!r}: write SOURCE:TARGET or SOURCE:TARGET:ro, TARGET beginning with /")
    path = Path(source).expanduser().absolute()
    if not path.exists():
        hint = "" if "/" in source else f"; volumes have no names here, write ./{source} for a directory"
        raise ContainerError(f"{source}: not there{hint}")
    return Volume(path, target, _READ_WRITE[mode])


def parse_size(text: str) -> int:
    """Bytes, written as a number that may end with b, k, m or g.

    Raises:
        ContainerError: it makes no sense.
    """
    number = text.lower().rstrip("bkmg")
    unit = text.lower()[len(number) :]
    if not (number.isascii() and number.isdecimal() and len(number) <= _LONGEST_NUMBER and unit in _UNITS):
        raise ContainerError(f"{text!r}: write a size as 512m or 2g")
    return int(number) * _UNITS[unit]


def parse_tmpfs(text: str) -> Tmpfs:
    """A directory in memory, written TARGET[:OPTION,…]; no programs and devices unless the options say so.

    Raises:
        ContainerError: it makes no sense.
    """
    target, _, rest = text.partition(":")
    if not target.startswith("/"):
        raise ContainerError(f"{text!r}: write TARGET or TARGET:size=64m,exec, TARGET beginning with /")
    options = ["nosuid", "nodev", "noexec"]
    for option in filter(None, rest.split(",")):
        name, equals, _ = option.partition("=")
        if equals and name in _SETTINGS:
            options.append(option)
        elif option in _SWITCHES:
            options = [*(other for other in options if other != _SWITCHES[option]), option]
        elif option not in _SWITCHES.values():
            raise ContainerError(f"{text!r}: no option {option!r} of a tmpfs")
    return Tmpfs(target, tuple(options))


def parse_device(text: str) -> Device:
    """A device written SOURCE[:TARGET][:ACCESS], ACCESS of r, w and m, as docker does.

    Raises:
        ContainerError: it makes no sense, or is none.
    """
    source, _, rest = text.partition(":")
    target, _, access = rest.partition(":")
    if target and not target.startswith("/") and not access:
        target, access = "", target
    path = Path(source).absolute()
    target, access = target or str(path), access or "rwm"
    if not source or not target.startswith("/") or not set(access) <= _ACCESS:
        raise ContainerError(f"{text!r}: write SOURCE, SOURCE:TARGET or SOURCE:TARGET:rw, of r, w and m")
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise ContainerError(f"{source}: {getattr(error, 'strerror', '') or error}") from error
    if not stat.S_ISBLK(status.st_mode) and not stat.S_ISCHR(status.st_mode):
        raise ContainerError(f"{source} is no device: -v shows files and directories")
    return Device(path, target, access, status)
