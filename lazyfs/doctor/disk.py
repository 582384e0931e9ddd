"""Where content is kept, and the limits of a process."""

import errno
import os
import resource
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Final

from lazyfs.cache.files import data_runs, punch_hole
from lazyfs.cache.inventory import counted
from lazyfs.config import Config
from lazyfs.doctor.findings import Finding, ok, problem, warning
from lazyfs.doctor.machine import Machine, is_directory

_NAME: Final = "cache"
_REMOTE: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "fuse", "fuseblk", "virtiofs", "ceph"})
_PASSING: Final = frozenset({"tmpfs", "ramfs", "overlay"})
_TRIAL_SIZE: Final = 1 << 16
_FEW_FILES: Final = 4096


def existing_directory(config: Config) -> Path:
    """The cache directory, or the nearest directory above it that is there."""
    place = config.cache_dir.absolute()
    while not is_directory(place) and place != place.parent:
        place = place.parent
    return place


def check_cache(machine: Machine, config: Config) -> Iterator[Finding]:
    """The cache directory: whose it is, what it lies on, and whether there is room."""
    path = config.cache_dir.absolute()
    place = existing_directory(config)
    if place == path:
        yield _owner(machine, path)
    elif os.access(place, os.W_OK | os.X_OK):
        yield ok(_NAME, f"{path} will be made when it is needed")
    else:
        yield problem(
            _NAME, f"{path} cannot be made in {place}", "name another one: --cache-dir, or cache_dir"
        )
        return
    yield _kind(machine, place)
    yield from _trial(place)
    yield from _room(place, path, config)


def _owner(machine: Machine, path: Path) -> Finding:
    status = path.stat()
    if status.st_uid != machine.uid:
        advice = f"chown {machine.uid} {path}, or name another one"
        return problem(_NAME, f"{path} belongs to user {status.st_uid}", advice)
    if stat.S_IMODE(status.st_mode) & 0o077:
        return problem(_NAME, f"others may enter {path}", f"chmod 700 {path}, if it was yours alone so far")
    return ok(_NAME, str(path))


def _kind(machine: Machine, place: Path) -> Finding:
    fstype = machine.file_system(place)
    if fstype in _REMOTE or fstype.startswith("fuse."):
        return warning(
            "cache's file system", fstype, "put the cache on a local disk: it needs locks and holes"
        )
    if fstype in _PASSING:
        advice = "put the cache on ext4, xfs or btrfs, where it outlives this boot or container"
        return warning("cache's file system", fstype, advice)
    return ok("cache's file system", fstype or "unknown")


def _trial(place: Path) -> Iterator[Finding]:
    """A sparse file, with a hole punched into it."""
    try:
        with NamedTemporaryFile(dir=place, prefix=".doctor-", buffering=0) as file:
            file.write(b"x" * _TRIAL_SIZE)
            punched = punch_hole(file.fileno(), 0, _TRIAL_SIZE)
            left = sum(end - start for start, end in data_runs(file.fileno(), 0, _TRIAL_SIZE))
    except OSError as error:
        if error.errno == errno.EROFS:
            yield warning(
                "cache's files", "the file system is read only", "remount it, to keep what is fetched"
            )
        elif error.errno in {errno.ENOSPC, errno.EDQUOT}:
            yield problem("cache's files", f"none can be written: {error.strerror}", "make room on that disk")
        else:
            yield problem("cache's files", f"none can be written: {error.strerror}", f"see to {place}")
        return
    if punched and left < _TRIAL_SIZE:
        yield ok("cache's files", "can be sparse, and give their space back")
    else:
        advice = "put the cache on ext4, xfs or btrfs"
        yield warning("cache's files", "cannot give back the space of what is evicted", advice)


def _room(place: Path, path: Path, config: Config) -> Iterator[Finding]:
    with suppress(OSError):
        disk = os.statvfs(place)
        free = disk.f_bavail * disk.f_frsize >> 20
        if free < config.free_floor_mib:
            fact = f"{free} MiB are free, less than the {config.free_floor_mib} that are to be left free"
            yield problem(
                "room", fact, "make room on that disk, or lower free_floor_mib: nothing is cached now"
            )
        else:
            yield ok("room", f"{free} MiB are free")
    if config.cache_quota_mib:
        taken = counted(path) >> 20
        if taken > config.cache_quota_mib:
            fact = f"the cache takes {taken} MiB, and may take {config.cache_quota_mib}"
            yield warning("quota", fact, "lazyfs cache gc; pinned images are never evicted")
        else:
            yield ok("quota", f"{taken} MiB of {config.cache_quota_mib} are taken")


def check_limits() -> Iterator[Finding]:
    """What this process, and so a mount's, may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _FEW_FILES:
        advice = f"ulimit -Hn {_FEW_FILES}, or LimitNOFILE= in the unit: images of many layers need more"
        yield warning("open files", f"at most {soft}, {hard} at the utmost", advice)
    else:
        yield ok("open files", f"at most {soft}")
    size = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if size != resource.RLIM_INFINITY:
        advice = "ulimit -f unlimited: larger layers are not cached"
        yield warning("file size", f"at most {size >> 20} MiB", advice)
    else:
        yield ok("file size", "not limited")
