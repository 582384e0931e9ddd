"""The writable root: overlayfs over a lazy image (Documentation/filesystems/overlayfs.rst)."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from msgspec import Struct

from lazyfs.errors import ContainerError
from lazyfs.mount.syscalls import FsContext, MountRefused, attach_mount


class Overlay(Struct, frozen=True):
    """What an overlay is made of.

    Attributes:
        lower: the image, mounted.
        upper: where changes go.
        work: an empty directory of the same file system.
        lasting: changes outlive a power cut; else nothing is synced, and the upper directory is good for this
            mount alone.
        in_user_namespace: its attributes are called user.overlay.*, which takes no privilege (Linux 5.11).
    """

    lower: Path
    upper: Path
    work: Path
    lasting: bool
    in_user_namespace: bool


def prepare(overlay: Overlay) -> None:
    """Make the directories; a new upper one has the attributes of the image's root from its first moment.

    Raises:
        OSError: they cannot be made.
    """
    overlay.work.mkdir(mode=0o700, parents=True, exist_ok=True)
    if overlay.upper.exists():
        return
    made = overlay.upper.with_name(overlay.upper.name + ".new")
    made.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = overlay.lower.stat()
    with suppress(OSError):  # an owner behind whom nobody of this machine stands
        os.chown(made, status.st_uid, status.st_gid)
    shutil.copystat(overlay.lower, made)
    made.rename(overlay.upper)


def mount_overlay(overlay: Overlay, target: Path) -> None:
    """Mount it. Directories that are renamed are copied by whoever renames: an upper one stays a plain layer.

    Raises:
        ContainerError: the kernel refuses; the message says what may help.
    """
    try:
        with FsContext("overlay") as context, _named(overlay) as names:
            context.string("source", b"lazyfs")
            for key, name in names.items():
                context.string(key, name)
            if overlay.in_user_namespace:
                context.flag("userxattr")
            else:
                context.string("redirect_dir", b"nofollow")
                context.string("metacopy", b"off")
            if not overlay.lasting:
                with suppress(MountRefused):  # before Linux 5.10
                    context.flag("volatile")
            mount_fd = context.mount(0)
    except MountRefused as error:
        raise ContainerError(_refusal(error, overlay)) from error
    try:
        attach_mount(mount_fd, os.fsencode(target))
    finally:
        os.close(mount_fd)


@contextmanager
def _named(overlay: Overlay) -> Iterator[dict[str, bytes]]:
    """Names of the directories that are short, and free of what overlayfs reads in names."""
    opened = {}
    try:
        for key, path in (
            ("lowerdir", overlay.lower),
            ("upperdir", overlay.upper),
            ("workdir", overlay.work),
        ):
            opened[key] = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        yield {key: b"/proc/self/fd/%d" % descriptor for key, descriptor in opened.items()}
    finally:
        for descriptor in opened.values():
            os.close(descriptor)


def _refusal(error: MountRefused, overlay: Overlay) -> str:
    advice = ""
    if error.errno == errno.EINVAL:
        advice = f": the file system of {overlay.upper.parent} will not do for changes, as overlay and FUSE"
    elif error.errno == errno.EPERM:
        advice = ": overlayfs for ordinary users takes Linux 5.11"
    elif error.errno == errno.EBUSY:
        advice = f": another container uses {overlay.upper.parent}"
    return f"{error}{advice}"
