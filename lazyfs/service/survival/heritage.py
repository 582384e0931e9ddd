"""What a daemon before us left: connections that were kept for us, their mounts, and orders for the rest."""

import logging
import os
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from lazyfs.mount.forest import ROOT
from lazyfs.mount.forest_mount import take_down
from lazyfs.mount.mounts import Mount, read_mount_table
from lazyfs.service.drivers.fuse import InheritedTree, inherited_trees
from lazyfs.service.ledger import Entry, SavedFile, State
from lazyfs.service.options import ServiceOptions
from lazyfs.service.survival.kept_session import Connection, inherited_connection
from lazyfs.service.survival.supervisor import Supervisor

_log = logging.getLogger(__name__)


class Heritage(Struct, frozen=True):
    """What can be gone on with, and what cannot.

    Attributes:
        connection: that of the forest; None if there is none to go on with.
        store: that of the layer store; None likewise.
        last: the highest number that was given to a file of the forest.
        files: the forest's files.
        trees: trees beside the forest.
        adopted: mounts that are there and will be served.
        orders: mounts that are to be made again.
    """

    connection: Connection | None
    store: Connection | None
    last: int
    files: tuple[SavedFile, ...]
    trees: tuple[InheritedTree, ...]
    adopted: tuple[Entry, ...]
    orders: tuple[Entry, ...]

    @property
    def adopted_names(self) -> list[str]:
        """Names of the mounts that are there and will be served."""
        return [entry.name for entry in self.adopted]


def inherit(
    state: State, options: ServiceOptions, supervisor: Supervisor, mounts: Iterable[Mount]
) -> Heritage:
    """What there is, given what was written down, kept, and is mounted."""
    connection = inherited_connection("forest", state.session, supervisor)
    trees = tuple(inherited_trees(state.trees, supervisor))
    served = {tree.saved.name for tree in trees}
    there = {mount.mount_point: mount for mount in mounts}
    left, store = state.store, None
    if left is not None and left.directory == options.layer_store and os.fsencode(left.directory) in there:
        store = inherited_connection("store", left.session, supervisor)

    def is_there(entry: Entry) -> bool:
        mount = there.get(os.fsencode(options.mounts / entry.name))
        if mount is None:
            return False
        return connection is not None if mount.fstype == b"erofs" else entry.name in served

    adopted = tuple(replace(entry, mounted=True, again=False) for entry in state.entries if is_there(entry))
    lost = (entry for entry in state.entries if not is_there(entry))
    orders = tuple(entry for entry in lost if entry.mounted or entry.again)
    if connection is None or state.session is None:
        return Heritage(None, store, ROOT, (), trees, adopted, orders)
    unnoted = [entry for entry in state.entries if is_there(entry) and not entry.mounted]
    sources = [there[os.fsencode(options.mounts / entry.name)].source for entry in unnoted]
    files = _counted(state.files, unnoted, sources, os.fsencode(options.forest))
    return Heritage(connection, store, state.session.last, files, trees, adopted, orders)


def _counted(
    files: Iterable[SavedFile], unnoted: Iterable[Entry], sources: Iterable[bytes], forest: bytes
) -> tuple[SavedFile, ...]:
    """Files as the kernel has them open, who were counted before these mounts were there.

    A metadata image is among them where it is the forest's file, not its own, that the mount shows as source.
    """
    more = [b"%d" % inode for entry in unnoted for inode in entry.devices]
    more += [name for place, name in map(os.path.split, sources) if place == forest]
    return tuple(replace(file, opens=file.opens + more.count(b"%d" % file.inode)) for file in files)


def take_down_rest(options: ServiceOptions, kept: Collection[str]) -> None:
    """Unmount all trees but these. Whatever uses them can go on reading what the kernel has of them.

    Raises:
        MountError: something cannot be unmounted.
    """
    below = os.fsencode(options.mounts) + b"/"
    stay = {below + os.fsencode(name) for name in kept}
    points = {mount.mount_point for mount in read_mount_table()}
    for point in sorted(point for point in points - stay if point.startswith(below)):
        _log.info("%s was left by another daemon", os.fsdecode(point))
        take_down(Path(os.fsdecode(point)))
    for path in options.mounts.iterdir():
        if os.fsencode(path) not in stay:
            with suppress(OSError):  # it holds what is none of ours
                path.rmdir()
