"""The cache directory itself: whose it is, and that it is one."""

import os
import stat
from pathlib import Path
from typing import Final

from lazyfs.cache.files import DIRECTORY_MODE, cache_errors, read_bounded, write_all
from lazyfs.cache.scratch import Scratch
from lazyfs.errors import CacheError
from lazyfs.flock import directory_locked

_VERSION: Final = b"1\n"
_PARTS: Final = (
    *("layers", "tocs", "images", "documents", "references", "catalogue"),
    *("quarantine", "traces", "packs", "containers", "locks", "tmp"),
)
_MAY_BE_THERE: Final = frozenset({"lost+found", *_PARTS})


def open_root(path: Path) -> Path:
    """Makes `path` a cache directory, or finds that it is one; returns it without symlinks.

    Raises:
        CacheError: it belongs to somebody else, others may enter it, it holds other things, or is of another
            version.
    """
    with cache_errors(f"use {path} as a cache directory"):
        if path.is_symlink() and path.lstat().st_uid != os.geteuid():
            raise CacheError(f"{path} is somebody else's symlink: choose another cache directory")
        _make_directory(path, parents=True)
        root = path.resolve(strict=True)
        if root.stat().st_uid != os.geteuid():
            raise CacheError(f"{root} belongs to somebody else: choose another cache directory")
        if read_bounded(root / "version", 64) is None:
            with directory_locked(root):
                _settle(root)
        if stat.S_IMODE(root.stat().st_mode) & 0o077:
            raise CacheError(f"others may enter {root}: chmod 700 it, if it was yours alone so far")
        _check_version(root)
        for part in _PARTS:
            _make_directory(root / part)
        return root


def _make_directory(path: Path, *, parents: bool = False) -> None:
    """Makes a directory unless it is there; one that is there, a file system may be too full to make."""
    if not path.is_dir():
        path.mkdir(mode=DIRECTORY_MODE, parents=parents, exist_ok=True)


def _settle(root: Path) -> None:
    if read_bounded(root / "version", 64) is not None:
        return
    others = sorted({entry.name for entry in os.scandir(root)} - _MAY_BE_THERE)
    if others:
        raise CacheError(f"{root} holds other things ({others[0]!r}): choose an empty cache directory")
    root.chmod(DIRECTORY_MODE)
    (root / "tmp").mkdir(mode=DIRECTORY_MODE, exist_ok=True)
    with Scratch(root / "tmp").file() as (descriptor, made):
        write_all(descriptor, _VERSION, 0)
        os.fsync(descriptor)  # what a power cut left empty would be a cache of another version for ever
        made.rename(root / "version")


def _check_version(root: Path) -> None:
    version = read_bounded(root / "version", 64)
    if version != _VERSION:
        raise CacheError(f"{root} is a cache of another version ({version!r}): remove it or choose another")
