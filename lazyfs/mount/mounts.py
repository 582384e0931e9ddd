"""What is mounted where, read from the kernel's table, and how to unmount it.

No file system is asked: a mount whose daemon is dead or hangs is found and unmounted like any other.
"""

import errno
import os
import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from msgspec import Struct

from lazyfs.errors import MountError, NotMounted
from lazyfs.mount.syscalls import unmount_kernel

MOUNT_TABLE: Final = Path("/proc/self/mountinfo")

_ESCAPE: Final = re.compile(rb"\\([0-7]{3})")
_METADATA_IMAGE: Final = re.compile(rb"/images/[0-9a-f]{64}\.erofs$")  # in a cache
# Where containers/storage has its directory of layers with a container's owners, while it mounts that one.
_MAPPED_LAYERS: Final = re.compile(rb"/[0-9a-f]{64}/mapped/[0-9]+(?=/l/[^/]+$)")
_SYMLINK_LIMIT: Final = 40  # as the kernel's MAXSYMLINKS


class Mount(Struct, frozen=True):
    """A line of /proc/self/mountinfo (proc_pid_mountinfo(5)).

    Attributes:
        mount_id: unique among the present mounts.
        parent_id: the mount it is attached to.
        device: major and minor number of the files' st_dev.
        root: the directory of the file system that is mounted.
        mount_point: where, as seen from our root directory.
        options: of this mount: b"ro", b"nosuid", ...
        fstype: b"ext4", b"fuse.lazyfs", ...
        source: what is mounted, in the words of the file system.
        file_system_options: of the file system, in its own words: b"lowerdir=/a:/b".
    """

    mount_id: int
    parent_id: int
    device: tuple[int, int]
    root: bytes
    mount_point: bytes
    options: frozenset[bytes]
    fstype: bytes
    source: bytes
    file_system_options: bytes = b""

    @property
    def looks_ours(self) -> bool:
        """Whether it seems to be an image of lazyfs, of whatever process or cache."""
        return b"lazyfs" in self.fstype or (
            self.fstype == b"erofs" and _METADATA_IMAGE.search(self.source) is not None
        )


def parse_mount_table(table: bytes) -> list[Mount]:
    """The lines of a mountinfo file, in their order."""
    return [_parse_line(line) for line in table.split(b"\n") if line]


def _parse_line(line: bytes) -> Mount:
    fields = line.split(b" ")
    mount_id, parent_id, device, root, mount_point, options = fields[:6]
    optional_end = fields.index(b"-", 6)
    fstype, source, file_system_options = fields[optional_end + 1 : optional_end + 4]
    major, _, minor = device.partition(b":")
    return Mount(
        mount_id=int(mount_id),
        parent_id=int(parent_id),
        device=(int(major), int(minor)),
        root=_unescape(root),
        mount_point=_unescape(mount_point),
        options=frozenset(options.split(b",")),
        fstype=fstype,
        source=_unescape(source),
        file_system_options=_unescape(file_system_options),
    )


def _unescape(field: bytes) -> bytes:
    return _ESCAPE.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), field)


def topmost(mounts: Sequence[Mount], mount_point: bytes) -> Mount | None:
    """The mount that a path ending at `mount_point` meets, or None: of several, the one that covers all."""
    here = [mount for mount in mounts if mount.mount_point == mount_point]
    covered = {mount.parent_id for mount in here}
    return next((mount for mount in reversed(here) if mount.mount_id not in covered), None)


def mount_at(path: Path) -> Mount | None:
    """What is mounted at `path`, or None."""
    return topmost(read_mount_table(), resolve_mount_point(path))


def read_mount_table() -> list[Mount]:
    """The present mounts of our mount namespace."""
    return parse_mount_table(MOUNT_TABLE.read_bytes())


def resolve_mount_point(path: Path) -> bytes:
    """`path` without symlinks, as the kernel's table writes it; what is mounted there is not touched.

    Raises:
        MountError: symlinks lead in a circle.
    """
    place = os.fsencode(path)
    if not path.is_absolute():  # the working directory may be gone, with the mount it was in
        place = os.path.join(os.getcwdb(), place)  # noqa: PTH109, PTH118  # bytes
    for _ in range(_SYMLINK_LIMIT):
        parent, name = os.path.split(place.rstrip(b"/"))
        if name in {b"", b".", b".."}:
            return os.path.realpath(place)
        place = os.path.join(os.path.realpath(parent), name)  # noqa: PTH118  # bytes
        try:
            # readlink(2) of a mounted root fails without a request to its daemon; lstat(2) could hang.
            target = os.readlink(place)  # noqa: PTH115  # bytes
        except OSError:
            return place
        place = os.path.join(os.path.dirname(place), target)  # noqa: PTH118, PTH120  # bytes
    raise MountError(f"too many symbolic links in {os.fsdecode(path)}")


def lower_directories(mount_point: bytes) -> list[bytes]:
    """What the overlay at a mount point lies over, as `resolve_mount_point` writes it; none of others.

    Where a list was too long for whoever mounted it, its paths are relative to a directory that the kernel
    does not tell: these are left out. Of layers that Podman shows with other owners, it gives the layers.
    Where it lies over clones that are gone from the tree, its source may say what they are of.
    """
    mount = topmost(read_mount_table(), mount_point)
    if mount is None or mount.fstype != b"overlay":
        return []
    options = (option.partition(b"=") for option in mount.file_system_options.split(b","))
    lists = [value for name, _, value in options if name in {b"lowerdir", b"lowerdir+"}]
    shown = [_MAPPED_LAYERS.sub(b"", path) for each in lists for path in each.split(b":")]
    paths = [mount.source, *shown]
    return [resolve_mount_point(Path(os.fsdecode(path))) for path in paths if path.startswith(b"/")]


def unmount_apart(path: Path) -> bool:
    """Has a process of its own unmount `path`; False if it did not, and `unmount` tells why.

    For who answers the mount's requests. umount(2) of EROFS waits for reads under way, and not even SIGKILL
    ends that wait: killed in it, we would keep our end of the FUSE connection open, unanswered, for ever.
    """
    command: list[str | bytes] = ["umount", "--internal-only", "--no-canonicalize", "--"]
    try:
        done = subprocess.run([*command, resolve_mount_point(path)], check=False, capture_output=True)
    except FileNotFoundError:
        return False
    return done.returncode == 0


def unmount(path: Path, *, lazy: bool = False) -> None:
    """Unmounts what is mounted at `path`, as root or, of FUSE and one's own, with fusermount3.

    For a worker thread: it may wait for a file system's daemon.

    Args:
        path: the mount point.
        lazy: take it out of the tree now even if it is in use; it ends with its last user.

    Raises:
        NotMounted: nothing is mounted there.
        MountError: it is in use, or not ours to unmount; the message says what to do.
    """
    mount_point = resolve_mount_point(path)
    shown = os.fsdecode(mount_point)
    if topmost(read_mount_table(), mount_point) is None:
        raise NotMounted(f"nothing is mounted at {shown}")
    try:
        unmount_kernel(mount_point, lazy=lazy)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise Busy(shown, next(_below(mount_point), "")) from error
        if error.errno == errno.EINVAL:  # unmounted by someone else since we looked
            raise NotMounted(f"nothing is mounted at {shown}") from error
        if error.errno not in {errno.EPERM, errno.EACCES}:
            raise MountError(f"cannot unmount {shown}: {error.strerror}") from error
        _unmount_with_fusermount(shown, lazy=lazy)


def _below(mount_point: bytes) -> Iterator[str]:
    """The mount points below one."""
    top = mount_point.rstrip(b"/") + b"/"
    return (os.fsdecode(m.mount_point) for m in read_mount_table() if m.mount_point.startswith(top))


class Busy(MountError):
    """A mount that is in use cannot be unmounted, unless lazily."""

    def __init__(self, mount_point: str, below: str = "") -> None:
        reason = (
            f"unmount {below} first, which is mounted in it"
            if below
            else "stop the processes that have files or directories open there "
            f"(`fuser -vm {shlex.quote(mount_point)}` lists them)"
        )
        super().__init__(f"{mount_point} is in use: {reason}, or unmount it lazily")


def _unmount_with_fusermount(mount_point: str, *, lazy: bool) -> None:
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", mount_point]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except OSError as error:
        raise MountError(
            f"cannot unmount {mount_point}: it takes root, or fusermount3: install the package fuse3"
        ) from error
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip() or f"fusermount3 gave {done.returncode}"
        if "busy" in said.lower():
            raise Busy(mount_point)
        raise MountError(f"cannot unmount {mount_point}: {said}")
