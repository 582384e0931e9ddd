"""What the kernel can do: FUSE, EROFS, overlayfs, namespaces, and what we may ask of it."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Final

from indexer.compile import compile_image
from lazyfs.doctor.findings import Finding, ok, problem, warning
from lazyfs.doctor.machine import Machine
from lazyfs.errors import MountError
from lazyfs.mount.fuse_mount import MountOptions, connect_detached
from lazyfs.mount.loop_devices import loop_devices
from lazyfs.mount.syscalls import MOUNT_READ_ONLY, FsContext, MountRefused

_FROM_FILES: Final = (6, 12)
_NEW_CALLS: Final = (5, 2)

Trial = Callable[[Path], str]
"""Mounts something that is attached nowhere, with files in a directory; says in words what worked.

Raises MountError where nothing did.
"""


def check_kernel(machine: Machine) -> Iterator[Finding]:
    """The kernel's version."""
    version, release = machine.kernel, machine.release
    if version < _NEW_CALLS:
        yield problem("kernel", f"Linux {release}", "use Linux 5.2 or later, better 6.12")
    elif version < _FROM_FILES:
        advice = "with Linux 6.12 or later, images are mounted from files, without loop devices"
        yield warning("kernel", f"Linux {release}", advice)
    else:
        yield ok("kernel", f"Linux {release}")


def check_capabilities(machine: Machine) -> Iterator[Finding]:
    """Whether we may mount."""
    if machine.may_mount:
        yield ok("capabilities", "CAP_SYS_ADMIN, in the initial user namespace")
    else:
        yield warning(
            "capabilities",
            "no CAP_SYS_ADMIN in the initial user namespace: images are mounted by the fuse driver",
            "run as root where speed counts, and for the daemon and the snapshotter",
        )


def try_fuse(_directory: Path) -> str:
    """A FUSE file system without a name."""
    connection = connect_detached(MountOptions("lazyfs-doctor"))
    os.close(connection.device_fd)
    if connection.mount_fd is not None:
        os.close(connection.mount_fd)
    return "a file system can be mounted"


def check_fuse(machine: Machine, directory: Path, trial: Trial = try_fuse) -> Iterator[Finding]:
    """/dev/fuse, and fusermount3 for those who may not mount."""
    device = machine.path("/dev/fuse")
    try:
        is_device = stat.S_ISCHR(device.stat().st_mode)
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        missing = error.errno in {errno.ENOENT, errno.ENODEV, errno.ENXIO}
        advice = "modprobe fuse; in a container, give it the device" if missing else "chmod 666 /dev/fuse"
        yield problem("/dev/fuse", f"cannot be opened: {error.strerror}", advice)
        return
    if not is_device:
        yield problem("/dev/fuse", "is no device", "rm /dev/fuse; mknod -m 666 /dev/fuse c 10 229")
        return
    yield ok("/dev/fuse", "can be opened")
    if machine.may_mount:
        yield _tried("FUSE", trial, directory, "modprobe fuse")
    else:
        yield from _check_fusermount(machine)


def _check_fusermount(machine: Machine) -> Iterator[Finding]:
    helper = machine.program("fusermount3")
    if helper is None:
        yield problem("fusermount3", "is not installed", "install the package fuse3")
    elif not Path(helper).stat().st_mode & stat.S_ISUID and machine.uid != 0:
        yield warning("fusermount3", f"{helper} is not setuid root", f"chmod u+s {helper}")
    else:
        yield ok("fusermount3", helper)


def try_erofs(directory: Path) -> str:
    """An empty EROFS image, mounted in the first way that the kernel takes."""
    with NamedTemporaryFile(dir=directory, prefix="doctor-", suffix=".erofs") as image:
        made = BytesIO()
        compile_image([], made)
        image.write(made.getvalue())
        image.flush()
        name = os.fsencode(image.name)
        try:
            _mount_erofs(name)
        except MountRefused as error:
            if error.errno != errno.ENOTBLK:
                raise
        else:
            return "images are mounted from files of the cache's file system"
        with loop_devices([name]) as devices:
            _mount_erofs(devices[0])
            return f"images are mounted over loop devices, not from files of {directory}"


def _mount_erofs(source: bytes) -> None:
    with FsContext("erofs") as context:
        context.string("source", source)
        context.flag("ro")
        os.close(context.mount(MOUNT_READ_ONLY))


def check_erofs(machine: Machine, directory: Path, trial: Trial = try_erofs) -> Iterator[Finding]:
    """Whether the kernel reads images by itself."""
    if not machine.may_mount:
        yield ok("EROFS", "is not needed by the fuse driver")
        return
    try:
        said = trial(directory)
    except (MountError, OSError) as error:
        advice = "modprobe erofs; or a kernel with CONFIG_EROFS_FS. Until then the slower fuse driver is used"
        yield warning("EROFS", str(error), advice)
        return
    if "loop" in said and machine.kernel >= _FROM_FILES:
        yield warning("EROFS", said, "put the cache on ext4, xfs or btrfs")
    else:
        yield ok("EROFS", said)


def try_overlay(_directory: Path) -> str:
    """Whether the kernel knows overlayfs."""
    with FsContext("overlay"):
        return "the kernel has it"


def check_overlay(machine: Machine, directory: Path, trial: Trial = try_overlay) -> Iterator[Finding]:
    """What writable containers stand on."""
    if machine.may_mount:
        yield _tried("overlayfs", trial, directory, "modprobe overlay; containers cannot be run without it")
    elif "overlay" in (machine.text("/proc/filesystems") or "").split():
        yield ok("overlayfs", "the kernel has it")
    else:
        yield warning("overlayfs", "is not loaded", "as root: modprobe overlay")


def _tried(name: str, trial: Trial, directory: Path, advice: str) -> Finding:
    try:
        return ok(name, trial(directory))
    except (MountError, OSError) as error:
        return problem(name, str(error), advice)
