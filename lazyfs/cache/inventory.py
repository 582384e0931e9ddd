"""What the cache directory holds, read from the files alone: nothing is locked, made or repaired."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lazyfs.cache.entry_files import ABSENT, State
from lazyfs.cache.files import read_bounded

_LARGEST_PRESENCE: Final = 1 << 32
_LARGEST_STATE: Final = 1 << 16
_HEX: Final = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class EntryInfo:
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
    """

    layer_digest: str
    toc_digest: str
    size: int
    leaves: int
    present: int
    allocated_bytes: int
    audited: bool
    last_used: float


@dataclass(frozen=True, slots=True)
class Usage:
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
        kinds={path.name: _allocated(path) for path in _directories(root)},
        layers={f"sha256:{path.name}": _allocated(path) for path in _digests(root / "layers")},
    )


def list_entries(layers: Path) -> Iterator[EntryInfo]:
    """The entries below the `layers` directory, in order of digests."""
    for layer in _digests(layers):
        for entry in _digests(layer):
            with suppress(OSError):  # it went away while we looked, or is none
                yield describe_entry(entry)


def describe_entry(path: Path) -> EntryInfo:
    """The entry at `path`, named by digests.

    Raises:
        OSError: there is none.
    """
    presence = read_bounded(path / "presence", _LARGEST_PRESENCE) or b""
    state = State.decode(read_bounded(path / "state", _LARGEST_STATE) or b"")
    return EntryInfo(
        layer_digest=f"sha256:{path.parent.name}",
        toc_digest=f"sha256:{path.name}",
        size=(path / "data").lstat().st_size if state is None else state.size,
        leaves=len(presence) if state is None else state.leaves,
        present=len(presence) - presence.count(ABSENT),
        allocated_bytes=_allocated(path),
        audited=state is not None and state.audited,
        last_used=path.lstat().st_mtime,
    )


def _directories(path: Path) -> list[Path]:
    with suppress(FileNotFoundError), os.scandir(path) as entries:
        return sorted(Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False))
    return []


def _digests(path: Path) -> list[Path]:
    return [child for child in _directories(path) if len(child.name) == 64 and _HEX.issuperset(child.name)]


def _allocated(path: Path) -> int:
    total = 0
    for directory, _, names in os.walk(path):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.lstat(os.path.join(directory, name)).st_blocks * 512  # noqa: PTH118  # bytes matter here
    return total
