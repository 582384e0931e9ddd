"""A forest that many EROFS mounts share: one FUSE connection, below a directory that only the kernel reads.

Trees come and go while the forest stands. A tree keeps the files it reads open for as long as anybody uses
it, be it unmounted or not; so the files' own counts tell when nobody needs them any more.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lazyfs.errors import NotMounted
from lazyfs.mount.erofs import Sources, mount_tree, opened_metadata, short_name
from lazyfs.mount.fuse_mount import MountOptions, check_mount_point
from lazyfs.mount.mounts import Busy, Mount, mount_at, unmount, unmount_apart
from lazyfs.mount.session import find_mounted


class Trunks(NamedTuple):
    """What a tree is mounted from.

    Attributes:
        directory: where the forest is shown.
        metadata_file: the tree's metadata image.
        metadata: the number of the file in the forest that shows the same.
        devices: the numbers of those that show its layers, in the order of its devices.
    """

    directory: Path
    metadata_file: Path
    metadata: int
    devices: Sequence[int]


def mount_from_forest(trunks: Trunks, mount_point: Path, options: MountOptions) -> Mount:
    """Mounts a tree. For a worker thread: whoever serves the forest has to answer meanwhile.

    Raises:
        AlreadyMounted: something is mounted there.
        MountError: the kernel refuses; the message says why.
    """
    place = check_mount_point(mount_point)
    top = os.fsencode(trunks.directory)
    metadata, *devices = [b"%s/%d" % (top, inode) for inode in (trunks.metadata, *trunks.devices)]
    with opened_metadata(trunks.metadata_file) as descriptor:
        mount_tree(Sources(short_name(trunks.metadata_file, descriptor), metadata, devices), place, options)
    return find_mounted(place)


def take_down(mount_point: Path, source: bytes | None = None) -> bool:
    """Unmounts all that is mounted at a place, lazily where it is in use. For a worker thread.

    Args:
        mount_point: the place.
        source: what the mount table shows of what is to go; what covers it, or is anything else, stays.

    Returns:
        Whether something was still in use.

    Raises:
        MountError: it cannot be unmounted.
    """
    lazily = False
    while source is None or _is_from(source, mount_point):
        try:
            if not unmount_apart(mount_point):
                unmount(mount_point)
        except NotMounted:
            return lazily
        except Busy:
            unmount(mount_point, lazy=True)
            lazily = True
    return lazily


def _is_from(source: bytes, mount_point: Path) -> bool:
    there = mount_at(mount_point)
    return there is not None and there.source == source
