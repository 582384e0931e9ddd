"""What the cache directory holds, read from the files alone: nothing is locked, made or repaired."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from msgspec import Struct

from lazyfs.cache.entry_files import ABSENT, State
from lazyfs.cache.files import read_bounded
from lazyfs.flock import try_flock

_LARGEST_PRESENCE: Final = 1 << 32
_LARGEST_STATE: Final = 1 << 16
_HEX: Final = frozenset("0123456789abcdef")
_HIDDEN: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.ENAMETOOLONG})


class EntryInfo(Struct, frozen=True):
    """One layer entry as its files show it.

    Attributes:
        layer_digest: digest of the layer's blob.
        toc_digest: digest of the table of contents.
        size: bytes of the device.
        leaves: leaves of all spans.
        present: how many are marked.
        allocated_bytes: bytes of disk that the entry takes.
        audited: the whole layer has been compared with its table of contents.
        last_used: when it was last opened, seconds since 1970.
        in_use: whether somebody has it open.
        pinned: whether it belongs to a pinned image.
    """

    layer_digest: str
    toc_digest: str
    size: int
    leaves: int
    present: int
    allocated_bytes: int
    audited: bool
    last_used: float
    in_use: bool = False
    pinned: bool = False


class Usage(Struct, frozen=True):
    """Bytes of disk that the cache takes, holes not counted.

    Attributes:
        kinds: by directory of the cache: "layers", "tocs", "images", …
        layers: by layer digest, the entries of all its tables of contents together.
    """

    kinds: dict[str, int]
    layers: dict[str, int]

    @property
    def total(self) -> int:
        """All kinds together."""
        return sum(self.kinds.values())


def measure(root: Path) -> Usage:
    """How much disk each part of the cache takes."""
    return Usage(
        kinds={path.name: allocated(path) for path in directories(root)},
        layers={f"sha256:{path.name}": allocated(path) for path in _digests(root / "layers")},
    )


def counted(root: Path) -> int:
    """Bytes of disk that count for the quota: all but what containers wrote, which nobody here can evict.

    Raises:
        OSError: the disk fails.
    """
    with suppress(FileNotFoundError):
        return sum(allocated(path) for path in root.iterdir() if path.name != "containers")
    return 0


def entry_paths(layers: Path) -> Iterator[Path]:
    """Where entries are below the `layers` directory, in order of digests."""
    for layer in _digests(layers):
        yield from _digests(layer)


def list_entries(layers: Path) -> Iterator[EntryInfo]:
    """The entries below the `layers` directory, in order of digests."""
    for path in entry_paths(layers):
        with suppress(OSError):  # it went away while we looked, or is none
            yield describe_entry(path)


def is_in_use(path: Path) -> bool:
    """Whether somebody has the entry at `path` open."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            return not try_flock(descriptor)
        finally:
            os.close(descriptor)
    return False


def describe_entry(path: Path) -> EntryInfo:
    """The entry at `path`, named by digests.

    Raises:
        OSError: there is none.
    """
    presence = read_bounded(path / "presence", _LARGEST_PRESENCE) or b""
    state = State.decode(read_bounded(path / "state", _LARGEST_STATE) or b"")
    presence = presence[: len(presence) - 8 if state is None else state.leaves]
    return EntryInfo(
        layer_digest=f"sha256:{path.parent.name}",
        toc_digest=f"sha256:{path.name}",
        size=(path / "data").lstat().st_size if state is None else state.size,
        leaves=len(presence) if state is None else state.leaves,
        present=len(presence) - presence.count(ABSENT),
        allocated_bytes=allocated(path),
        audited=state is not None and state.audited,
        last_used=path.lstat().st_mtime,
        in_use=is_in_use(path),
    )


def directories(path: Path) -> list[Path]:
    """The directories in a directory, sorted; none if there is no such directory."""
    with suppress(FileNotFoundError), os.scandir(path) as entries:
        return sorted(Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False))
    return []


def _digests(path: Path) -> list[Path]:
    return [child for child in directories(path) if len(child.name) == 64 and _HEX.issuperset(child.name)]


def allocated(path: Path) -> int:
    """Bytes of disk that a file, or all files below a directory, take; other file systems there do not count.

    Nor does what a container has made such that nobody can look at it: by too long paths, or modes.

    Raises:
        OSError: the disk fails.
    """
    return sum(_sizes(path))


def _sizes(path: Path) -> Iterator[int]:
    with _hidden_passed_by():
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            yield from _sizes_below(path, status.st_dev)
        else:
            yield status.st_blocks * 512


def _sizes_below(top: Path, device: int) -> Iterator[int]:
    ahead = [os.fspath(top)]
    while ahead:
        with _hidden_passed_by(), os.scandir(ahead.pop()) as entries:
            for entry in entries:
                with _hidden_passed_by():
                    status = entry.stat(follow_symlinks=False)
                    if not entry.is_dir(follow_symlinks=False):
                        yield status.st_blocks * 512
                    elif status.st_dev == device:
                        ahead.append(entry.path)


@contextmanager
def _hidden_passed_by() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _HIDDEN:
            raise
