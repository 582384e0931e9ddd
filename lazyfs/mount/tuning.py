"""The kernel's knobs of a mounted file system: how far it reads ahead, how many reads it has under way.

Only root may turn them. Where they cannot be turned the mount works as the kernel likes it, more slowly.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from lazyfs.errors import LazyfsError
from lazyfs.mount.syscalls import MOUNT_NO_DEVICES, MOUNT_NO_SETUID, FsContext

DEFAULT_READ_AHEAD_KB: Final = 128

START_READ_AHEAD_KB: Final = 16
"""While a start is recorded, or is hastened by a boot pack that was made of such a record.

With none, each page is a request of its own: importing numpy, scipy and pandas from memory takes 1.55 s, with
this it takes 1.09 s. The pages that nobody wanted make the packs 12 % larger."""

MAX_BACKGROUND: Final = 64
"""Reads through the page cache that may wait for us at once, for the kernel's 12: one stalled layer with a
dozen readers would otherwise stall all others."""

_BDI: Final = Path("/sys/class/bdi")

_log = logging.getLogger(__name__)


class ReadAheadKnob:
    """Turns the kernel's read-ahead of a mount after it was mounted. For a mount that still stands."""

    def __init__(self) -> None:
        self._places: list[Path] = []

    def found(self, bdi: Path) -> None:
        """Where it is turned."""
        self._places.append(bdi)

    def turn(self, kib: int) -> None:
        """Sets how many KiB the kernel reads ahead of a sequential reader."""
        for bdi in self._places:
            _write_read_ahead(bdi, kib)


def set_read_ahead(device: int, kib: int, knob: ReadAheadKnob | None = None) -> None:
    """Sets how many KiB the kernel reads ahead of a sequential reader of the file system with this st_dev.

    FUSE cuts it back to what was agreed in its first exchange, so set it after that.

    Args:
        device: the st_dev.
        kib: how many.
        knob: told where that is turned.
    """
    bdi = _BDI / f"{os.major(device)}:{os.minor(device)}"
    if knob is not None:
        knob.found(bdi)
    _write_read_ahead(bdi, kib)


def _write_read_ahead(bdi: Path, kib: int) -> None:
    try:
        (bdi / "read_ahead_kb").write_text(f"{kib}\n")
    except OSError as error:
        _log.info("read-ahead stays as it is: %s", error)


@contextmanager
def erofs_read_ahead(kib: int, knob: ReadAheadKnob | None = None) -> Iterator[None]:
    """Sets how many KiB the kernel reads ahead in the EROFS that is mounted inside the block; as above.

    Over files, EROFS has a bdi named by a count of its own ("erofs-7"), with nothing that leads from the
    mount to it. So what appeared meanwhile is taken for it, at worst with another mount of the same instant.
    """
    before = set(_BDI.glob("erofs-*"))
    yield
    for bdi in set(_BDI.glob("erofs-*")) - before:
        if knob is not None:
            knob.found(bdi)
        _write_read_ahead(bdi, kib)


def raise_max_background(device: int) -> None:
    """Lets MAX_BACKGROUND reads of the FUSE file system with this st_dev be under way at once.

    The knob lies in a file system of its own, fusectl, which is mounted out of sight for the purpose
    (Documentation/filesystems/fuse.rst, "Control filesystem").
    """
    try:
        with FsContext("fusectl") as context:
            control = context.mount(MOUNT_NO_SETUID | MOUNT_NO_DEVICES)
        try:
            _write(control, f"{os.minor(device)}/max_background", MAX_BACKGROUND)
            _write(control, f"{os.minor(device)}/congestion_threshold", MAX_BACKGROUND * 3 // 4)
        finally:
            os.close(control)
    except (OSError, LazyfsError) as error:
        _log.info("the number of reads under way stays as it is: %s", error)


def _write(directory: int, name: str, value: int) -> None:
    knob = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.write(knob, b"%d" % value)
    finally:
        os.close(knob)
