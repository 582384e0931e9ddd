"""The `erofs` driver: the kernel reads the metadata image, and the layers' bytes through FUSE files.

Of the two mounts only one is seen. The FUSE mount of the layers' files is attached nowhere: EROFS opens them
through our descriptor of it, and from then on the open files alone keep it alive. So whoever unmounts the
EROFS, from whatever mount namespace goes last, ends the FUSE connection with it, and that ends the session.
"""

import errno
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import trio
from msgspec import Struct

from indexer.erofs.read import MetadataImage
from lazyfs.errors import MountError
from lazyfs.mount.contents import LayerReader
from lazyfs.mount.forest import Forest, VirtualFile
from lazyfs.mount.forest_answers import ForestAnswers
from lazyfs.mount.fuse_mount import MountOptions, check_mount_point, connect_detached
from lazyfs.mount.loop_devices import loop_devices
from lazyfs.mount.mounts import Mount
from lazyfs.mount.raw_session import RawSession
from lazyfs.mount.session import Session, find_mounted, run_session
from lazyfs.mount.syscalls import LONGEST_VALUE, FsContext, MountRefused, attach_mount
from lazyfs.mount.tuning import erofs_read_ahead, raise_max_background, set_read_ahead

# With it, reads of devices bypass the page cache of the device files: bytes are cached once, as those of the
# files they belong to. Kernels that do not know the option (before 6.14) cache them twice.
_DIRECT: Final = "directio"

_log = logging.getLogger(__name__)


class Tree(Struct, frozen=True):
    """A merged tree to mount.

    Attributes:
        metadata: its metadata image.
        metadata_file: where that lies.
        layers: by number.
    """

    metadata: MetadataImage
    metadata_file: Path
    layers: Sequence[LayerReader]


class Sources(Struct, frozen=True):
    """What EROFS can be mounted from.

    Attributes:
        metadata_file: the metadata image as an ordinary file.
        metadata: the same as a FUSE file.
        devices: the layers as FUSE files.
    """

    metadata_file: bytes
    metadata: bytes
    devices: Sequence[bytes]


class LocalFile:
    """An open file, read like a layer."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read_nowait(self, start: int, size: int) -> bytes:
        """Bytes [start, start + size)."""
        return os.pread(self._descriptor, size, start)

    def has_some(self, start: int, size: int) -> bool:
        """Always."""
        del start, size
        return True

    async def read(self, start: int, size: int) -> bytes:
        """As `read_nowait`."""
        return self.read_nowait(start, size)


async def serve_erofs(
    tree: Tree,
    mountpoint: Path,
    options: MountOptions,
    read_timeout_s: float,
    *,
    task_status: trio.TaskStatus[Mount] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Mounts a tree at `mountpoint` and answers until it is unmounted or cancelled. Takes CAP_SYS_ADMIN.

    Reports, once it is mounted, the mount as the kernel's table has it.

    Raises:
        AlreadyMounted: something is mounted there.
        MountError: it cannot be mounted this way; the message says why.
    """
    mount_point = await trio.to_thread.run_sync(check_mount_point, mountpoint)
    with opened_metadata(tree.metadata_file) as metadata:
        forest = Forest()
        layers = zip(tree.layers, tree.metadata.devices, strict=True)
        inodes = [forest.add(VirtualFile(layer, device.size)) for layer, device in layers]
        inodes.append(forest.add(VirtualFile(LocalFile(metadata), tree.metadata.size)))
        connection = await trio.to_thread.run_sync(connect_detached, options)

        def mount() -> Mount:
            assert connection.mount_fd is not None
            top = b"/proc/self/fd/%d" % connection.mount_fd
            raise_max_background(os.stat(top).st_dev)  # noqa: PTH116  # bytes; answered by us
            *devices, last = [b"%s/%d" % (top, inode) for inode in inodes]
            mount_tree(Sources(short_name(tree.metadata_file, metadata), last, devices), mount_point, options)
            return find_mounted(mount_point)

        session = _session(connection.device_fd, forest, read_timeout_s, by_pyfuse3=options.by_pyfuse3)
        await run_session(session, connection, mount, task_status=task_status)


def _session(device_fd: int, forest: Forest, read_timeout_s: float, *, by_pyfuse3: bool) -> Session:
    if not by_pyfuse3:
        return RawSession(device_fd, ForestAnswers(forest, read_timeout_s))
    from lazyfs.mount.layer_files import LayerFileOperations  # noqa: PLC0415  # libfuse: only for who chose it
    from lazyfs.mount.pyfuse_session import PyfuseSession  # noqa: PLC0415  # the other half of that choice

    return PyfuseSession(device_fd, LayerFileOperations(forest, read_timeout_s))


def mount_tree(sources: Sources, mount_point: bytes, options: MountOptions) -> None:
    """Mounts EROFS in the first way that the kernel allows; each is refused with ENOTBLK where it is not.

    * The metadata's own file: Linux 6.12 with EROFS_FS_BACKED_BY_FILE, and a file system that the kernel
      reads through pages, such as ext4, xfs or btrfs. It is still read when we are dead.
    * Its FUSE file, where the own one lies on tmpfs or an overlay.
    * Loop devices, on older kernels.

    Raises:
        MountError: none of them.
    """
    ways = (_mount_from_file, _mount_from_fuse, _mount_from_loop_devices)
    for way in ways:
        try:
            way(sources, mount_point, options)
        except MountRefused as error:
            if error.errno != errno.ENOTBLK or way is ways[-1]:
                raise
            _log.info("not %s: %s", way.__name__.removeprefix("_mount_").replace("_", " "), error)
        else:
            return


def _mount_from_file(sources: Sources, mount_point: bytes, options: MountOptions) -> None:
    _mount(sources.metadata_file, sources.devices, mount_point, options)


def _mount_from_fuse(sources: Sources, mount_point: bytes, options: MountOptions) -> None:
    _mount(sources.metadata, sources.devices, mount_point, options)


def _mount_from_loop_devices(sources: Sources, mount_point: bytes, options: MountOptions) -> None:
    with loop_devices([sources.metadata, *sources.devices]) as looped:
        set_read_ahead(os.stat(looped[0]).st_rdev, options.read_ahead_kb, options.knob)  # noqa: PTH116  # bytes
        _mount(looped[0], looped[1:], mount_point, options)


def _mount(metadata: bytes, devices: Sequence[bytes], mount_point: bytes, options: MountOptions) -> None:
    with erofs_read_ahead(options.read_ahead_kb, options.knob):
        mount_fd = _configured(metadata, devices, options)
    try:
        attach_mount(mount_fd, mount_point)
    except OSError as error:
        raise MountError(f"cannot mount on {os.fsdecode(mount_point)}: {error.strerror}") from error
    finally:
        os.close(mount_fd)


def _configured(metadata: bytes, devices: Sequence[bytes], options: MountOptions) -> int:
    with FsContext("erofs") as context:
        context.string("source", metadata)
        for device in devices:
            context.string("device", device)
        try:
            context.flag(_DIRECT)
        except MountRefused as error:
            _log.info("layers' bytes are cached twice: %s", error)
        context.flag("ro")
        return context.mount(options.attributes)


@contextmanager
def opened_metadata(path: Path) -> Iterator[int]:
    """A descriptor of a metadata image.

    Raises:
        MountError: it cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise MountError(f"cannot open the metadata image {path}: {error.strerror}") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def short_name(path: Path, descriptor: int) -> bytes:
    """`path`, which the mount table will show, or what leads to it where it is too long for fsconfig(2)."""
    name = os.fsencode(path.absolute())
    return name if len(name) <= LONGEST_VALUE else b"/proc/self/fd/%d" % descriptor
