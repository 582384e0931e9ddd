"""Which driver presents a tree: the kernel's EROFS where that works, else FUSE for everything."""

import errno
import logging
from pathlib import Path
from typing import Final, Literal

import trio
from msgspec import Struct

from lazyfs.errors import AlreadyMounted, MountError
from lazyfs.mount.contents import Contents
from lazyfs.mount.erofs import Tree, serve_erofs
from lazyfs.mount.fuse_mount import MountOptions
from lazyfs.mount.mounts import Mount
from lazyfs.mount.session import serve
from lazyfs.mount.syscalls import FsContext, MountRefused
from lazyfs.mount.tree_answers import TreeAnswers

Driver = Literal["erofs", "fuse"]

_REASONS: Final = {
    errno.EPERM: "it takes CAP_SYS_ADMIN in the initial user namespace",
    errno.ENODEV: "this kernel has no EROFS",
    errno.ENOSYS: "this kernel is older than 5.2",
}

_log = logging.getLogger(__name__)


class Served(Struct, frozen=True):
    """A tree that is mounted.

    Attributes:
        mount: as the kernel's table has it.
        driver: which one presents it.
        why: why this one, in words.
    """

    mount: Mount
    driver: Driver
    why: str


def why_not_erofs() -> str | None:
    """What keeps the `erofs` driver from being tried here, in words; None if nothing is known to."""
    try:
        with FsContext("erofs"):
            return None
    except MountRefused as error:
        return _REASONS.get(error.errno, str(error))


async def serve_tree(
    tree: Tree,
    mountpoint: Path,
    options: MountOptions,
    read_timeout_s: float,
    driver: Driver | Literal["auto"] = "auto",
    *,
    task_status: trio.TaskStatus[Served] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Mounts a tree at `mountpoint` and answers until it is unmounted or cancelled.

    Args:
        tree: what.
        mountpoint: where.
        options: how.
        read_timeout_s: how long a reader waits at most.
        driver: "auto" takes `erofs`, and if any step of it fails, `fuse`.
        task_status: is told once it is mounted.

    Raises:
        AlreadyMounted: something is mounted there.
        MountError: it cannot be mounted; the message says what to do.
    """
    why = "it was asked for"
    if driver == "auto":
        reason = await _serve_if_possible(tree, mountpoint, options, read_timeout_s, task_status)
        if reason is None:
            return
        why = f"the erofs driver does not work here: {reason}"
        _log.info("%s", why)
    if driver == "erofs":
        reason = await trio.to_thread.run_sync(why_not_erofs)
        if reason is not None:
            raise MountError(f"the erofs driver does not work here: {reason}")
        status = _Status(task_status, "erofs", why)
        await serve_erofs(tree, mountpoint, options, read_timeout_s, task_status=status)
    else:
        answers = TreeAnswers(tree.metadata, Contents(tree.layers, read_timeout_s))
        await serve(answers, mountpoint, options, task_status=_Status(task_status, "fuse", why))


async def _serve_if_possible(
    tree: Tree,
    mountpoint: Path,
    options: MountOptions,
    read_timeout_s: float,
    task_status: trio.TaskStatus[Served],
) -> str | None:
    """Serves with `erofs` to the end, and gives None; or the reason, in words, why it could not begin."""
    reason = await trio.to_thread.run_sync(why_not_erofs)
    if reason is not None:
        return reason
    status = _Status(task_status, "erofs", "the kernel can read the image by itself")
    try:
        await serve_erofs(tree, mountpoint, options, read_timeout_s, task_status=status)
    except AlreadyMounted:
        raise
    except MountError as error:
        if status.is_started:
            raise
        return str(error)
    return None


class _Status(trio.TaskStatus[Mount]):
    """Passes on that a driver has mounted, and which.

    Attributes:
        is_started: whether it has.
    """

    def __init__(self, outer: trio.TaskStatus[Served], driver: Driver, why: str) -> None:
        self._outer = outer
        self._driver: Driver = driver
        self._why = why
        self.is_started = False

    def started(self, value: Mount) -> None:
        self.is_started = True
        self._outer.started(Served(value, self._driver, self._why))
