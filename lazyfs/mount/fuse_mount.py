"""How a FUSE file system gets mounted: by ourselves where we may, else by fusermount3.

libfuse could do it, but tells of failures only on stderr, and keeps the descriptor to itself. It accepts one
that is mounted already, as /dev/fd/N (libfuse 3.3, `fuse_session_mount`).
"""

import errno
import os
import socket
import stat
import subprocess
from pathlib import Path
from typing import Final

from msgspec import Struct

from lazyfs.errors import AlreadyMounted, MountError
from lazyfs.mount.mounts import read_mount_table, resolve_mount_point, topmost
from lazyfs.mount.syscalls import (
    LONGEST_VALUE,
    MOUNT_NO_DEVICES,
    MOUNT_NO_PROGRAMS,
    MOUNT_NO_SETUID,
    MOUNT_READ_ONLY,
    FsContext,
    MountRefused,
    attach_mount,
)
from lazyfs.mount.tuning import DEFAULT_READ_AHEAD_KB, ReadAheadKnob

FUSE_DEVICE: Final = "/dev/fuse"

_AUTOMOUNT: Final = b"autofs"  # what is mounted when somebody enters it lies over it
_NO_SUCH_COMMAND: Final = 127  # of env(1)
_NO_HELPER: Final = "mounting takes root, or fusermount3: install the package fuse3"

_HELP: Final = {
    errno.ENOENT: "load the module (modprobe fuse), or give the container the device (--device /dev/fuse)",
    errno.ENODEV: "load the module (modprobe fuse)",
    errno.EACCES: "its mode must let you open it (usually 0666), or be root",
    errno.EPERM: "the container must be allowed to use the device (--device /dev/fuse)",
}


class MountOptions(Struct, frozen=True):
    """How an image is mounted. Permissions are always checked by the kernel.

    Attributes:
        image: what the mount table shows as the source, after "lazyfs:".
        setuid: setuid and setgid bits and file capabilities count. An image is a stranger's: only for mounts
            that no other user of the machine can reach but through a container. Without CAP_SYS_ADMIN
            they never count.
        devices: device nodes can be opened; else as for `setuid`.
        programs: programs can be run.
        read_ahead_kb: how many KiB the kernel reads ahead of a sequential reader.
        knob: told where that can be turned later.
        read_only: whether the kernel refuses changes by itself, without asking.
        by_pyfuse3: whether libfuse answers for the layer files of the `erofs` driver, and not we ourselves.
    """

    image: str
    setuid: bool = False
    devices: bool = False
    programs: bool = True
    read_ahead_kb: int = DEFAULT_READ_AHEAD_KB
    knob: ReadAheadKnob | None = None
    read_only: bool = True
    by_pyfuse3: bool = False

    @property
    def source(self) -> bytes:
        """What the mount table shows."""
        return b"lazyfs:" + os.fsencode(self.image)[: LONGEST_VALUE - len(b"lazyfs:")]

    @property
    def attributes(self) -> int:
        """The flags of fsmount(2)."""
        no_setuid = 0 if self.setuid else MOUNT_NO_SETUID
        no_devices = 0 if self.devices else MOUNT_NO_DEVICES
        no_programs = 0 if self.programs else MOUNT_NO_PROGRAMS
        return (MOUNT_READ_ONLY if self.read_only else 0) | no_setuid | no_devices | no_programs


class Connection(Struct, frozen=True):
    """A mounted FUSE file system that nobody answers yet.

    Attributes:
        device_fd: an open /dev/fuse, for the requests.
        mount_fd: the mount, attached nowhere; None if fusermount3 has attached it.
    """

    device_fd: int
    mount_fd: int | None


def check_mount_point(path: Path) -> bytes:
    """`path` without symlinks, if something can be mounted there.

    Raises:
        AlreadyMounted: something is.
        MountError: it is no directory that we can reach; the message says what to do.
    """
    mount_point = resolve_mount_point(path)
    shown = os.fsdecode(mount_point)
    there = topmost(read_mount_table(), mount_point)
    if there is not None and there.looks_ours:
        raise AlreadyMounted(
            f"{shown} has an image mounted on it: lazyfs umount {shown}, or choose another directory"
        )
    if there is not None and there.fstype != _AUTOMOUNT:
        raise AlreadyMounted(
            f"{shown} has {os.fsdecode(there.source)} ({os.fsdecode(there.fstype)}) mounted on it: "
            "unmount that first, or choose another directory"
        )
    try:
        mode = os.stat(mount_point).st_mode  # noqa: PTH116  # bytes
    except FileNotFoundError:
        raise MountError(f"{shown} does not exist: create the directory first") from None
    except OSError as error:
        raise MountError(f"cannot mount on {shown}: {error.strerror}") from error
    if not stat.S_ISDIR(mode):
        raise MountError(f"{shown} is not a directory")
    return mount_point


def connect(mount_point: bytes, options: MountOptions) -> Connection:
    """A FUSE file system: attached nowhere if we may mount, else at `mount_point`. For a worker thread.

    Other users see it if we may mount; what fusermount3 mounts is closed to them.

    Raises:
        MountError: the kernel or fusermount3 refuses; the message says what to do.
    """
    device_fd = _open_device()
    try:
        return Connection(device_fd, mount_detached(device_fd, options, allow_other=True))
    except MountRefused as error:
        os.close(device_fd)
        if error.errno not in {errno.EPERM, errno.ENOSYS}:
            raise
    if options.setuid or options.devices:
        raise MountError("setuid bits and devices count in root's mounts alone: leave --suid and --dev out")
    return Connection(_fusermount(mount_point, options), None)


def connect_detached(options: MountOptions) -> Connection:
    """A FUSE file system that is attached nowhere and closed to other users. Takes CAP_SYS_ADMIN.

    Raises:
        MountError: the kernel refuses.
    """
    device_fd = _open_device()
    try:
        return Connection(device_fd, mount_detached(device_fd, options, allow_other=False))
    except MountRefused:
        os.close(device_fd)
        raise


def _open_device() -> int:
    try:
        return os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        hint = _HELP.get(error.errno or 0)
        advice = f": {hint}" if hint else ""
        raise MountError(f"cannot open {FUSE_DEVICE}: {error.strerror}{advice}") from error


def mount_detached(device_fd: int, options: MountOptions, *, allow_other: bool) -> int:
    """A descriptor of a mount, attached nowhere, whose requests arrive at `device_fd`.

    Raises:
        MountRefused: see its errno; EPERM without CAP_SYS_ADMIN, ENOSYS before Linux 5.2.
    """
    with FsContext("fuse") as context:
        context.string("source", options.source)
        context.string("subtype", b"lazyfs")
        context.string("fd", b"%d" % device_fd)
        context.string("rootmode", b"%o" % stat.S_IFDIR)
        context.string("user_id", b"%d" % os.getuid())
        context.string("group_id", b"%d" % os.getgid())
        context.flag("default_permissions")
        if allow_other:
            context.flag("allow_other")
        if options.read_only:
            context.flag("ro")
        return context.mount(options.attributes)


def attach(connection: Connection, mount_point: bytes) -> None:
    """Puts a connection's mount on its directory, if fusermount3 has not done so.

    Raises:
        MountError: the directory is gone.
    """
    if connection.mount_fd is None:
        return
    try:
        attach_mount(connection.mount_fd, mount_point)
    except OSError as error:
        raise MountError(f"cannot mount on {os.fsdecode(mount_point)}: {error.strerror}") from error


def _fusermount(mount_point: bytes, options: MountOptions) -> int:
    """Has the setuid helper mount; it sends the descriptor through a socket (libfuse, util/fusermount.c)."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        helper = [b"env", b"_FUSE_COMMFD=%d" % theirs.fileno(), b"LC_ALL=C", b"fusermount3"]
        try:
            done = subprocess.run(
                [*helper, b"-o", fusermount_options(options), b"--", mount_point],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                check=False,
            )
        except OSError as error:
            raise MountError(_NO_HELPER) from error
        theirs.close()
        if done.returncode == _NO_SUCH_COMMAND:
            raise MountError(_NO_HELPER)
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip() or f"exit code {done.returncode}"
            raise MountError(f"fusermount3 cannot mount on {os.fsdecode(mount_point)}: {said}")
        _message, descriptors, _flags, _address = socket.recv_fds(ours, 1, 1)
    if not descriptors:
        raise MountError("fusermount3 sent no descriptor")
    os.set_inheritable(descriptors[0], False)
    return descriptors[0]


def fusermount_options(options: MountOptions) -> bytes:
    """The argument of fusermount3's -o. It adds nosuid and nodev by itself, whatever is asked."""
    source = options.source.replace(b"\\", b"\\\\").replace(b",", b"\\,")
    words = [b"ro", b"default_permissions", b"subtype=lazyfs", b"fsname=" + source]
    if not options.programs:
        words.append(b"noexec")
    return b",".join(words)
