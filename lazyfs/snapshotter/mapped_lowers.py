"""Lower directories with the owners of a user namespace, where containerd cannot map them: clones of our own.

containerd maps the one directory that holds them all, without what is mounted below it. Where unpacked layers
lie on a lazy tree there is none. An overlay needs its lower directories no longer than it takes to mount it,
and whoever is to mount one asks how, just before. So clones go with their snapshot, or a minute after they
were asked for, whatever runs on them by then; those of a process before us when the next begins.
"""

import logging
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Final

import trio

from lazyfs.mount.syscalls import attach_mapped, unmount_kernel
from lazyfs.snapshotter.id_mapping import IdMapping
from lazyfs.snapshotter.model import SnapshotInUse

_KEPT_S: Final = 60.0
_UNMOUNT_S: Final = 10.0
_REFUSED: Final = (
    "layers over a lazy image cannot be shown with the owners of a user namespace: {why}; once the image has"
    " an index, remove it, and pull it again"
)

_log = logging.getLogger(__name__)


class MappedLowers:
    """All clones.

    Args:
        directory: where they are mounted; made when there is one.
        nursery: where they live.
        kept_s: for how long.
    """

    def __init__(self, directory: Path, nursery: trio.Nursery, kept_s: float = _KEPT_S) -> None:
        self._directory = directory
        self._nursery = nursery
        self._kept_s = kept_s
        self._numbers = count(1)
        self._places: dict[int, list[Path]] = {}  # by snapshot

    async def shown(self, snapshot: int, lowers: Sequence[Path], mapping: IdMapping) -> list[Path]:
        """Where directories that a snapshot stands on are shown with other owners.

        Raises:
            SnapshotInUse: they cannot be.
        """
        place = self._directory / str(next(self._numbers))
        try:
            shown = await trio.to_thread.run_sync(_show, place, lowers, mapping)
        except OSError as error:
            await _end(place)
            raise SnapshotInUse(_REFUSED.format(why=error.strerror or error)) from error
        self._places.setdefault(snapshot, []).append(place)
        self._nursery.start_soon(self._end_later, snapshot, place)
        return shown

    async def end(self, snapshot: int) -> None:
        """Take down those of a snapshot: they would keep what they are of mounted."""
        for place in self._places.pop(snapshot, ()):
            await _end(place)

    def clear(self) -> None:
        """Take down what a process before us left; blocks."""
        if self._directory.is_dir():
            for place in self._directory.iterdir():
                _take_down(place)

    async def _end_later(self, snapshot: int, place: Path) -> None:
        try:
            await trio.sleep(self._kept_s)
        finally:
            places = self._places.get(snapshot, [])
            if place in places:
                places.remove(place)
                await _end(place)


async def _end(place: Path) -> None:
    """Take down clones, whoever cancels; the last mount of a file system may take its time."""
    with trio.move_on_after(_UNMOUNT_S, shield=True):
        await trio.to_thread.run_sync(_take_down, place, abandon_on_cancel=True)


def _show(place: Path, lowers: Sequence[Path], mapping: IdMapping) -> list[Path]:
    """Raises OSError where the kernel, or the file system of a directory, does not do it."""
    targets = [place / str(number) for number in range(len(lowers))]
    place.mkdir(mode=0o700, parents=True)
    with _namespace(mapping) as namespace:
        for lower, target in zip(lowers, targets, strict=True):
            target.mkdir()
            attach_mapped(os.fsencode(lower), os.fsencode(target), namespace)
    return targets


@contextmanager
def _namespace(mapping: IdMapping) -> Iterator[int]:
    """A descriptor of a user namespace with these users; no process is in it for longer than this."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        ["unshare", "--user", "cat"], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, bufsize=0
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdin.write(b"\n")
        if not holder.stdout.read(1):  # it answers once it is in the namespace
            raise PermissionError("no user namespace can be made")
        for name, ranges in zip(("uid_map", "gid_map"), mapping.ranges, strict=True):
            Path(f"/proc/{holder.pid}/{name}").write_text(ranges)
        namespace = os.open(f"/proc/{holder.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        try:
            holder.stdin.close()
            yield namespace
        finally:
            os.close(namespace)


def _take_down(place: Path) -> None:
    """Never what is in a directory: it may be somebody's layer."""
    try:
        for target in place.iterdir():
            with suppress(OSError):  # perhaps nothing is mounted there; else it stays, and is told
                unmount_kernel(os.fsencode(target), lazy=True)
            target.rmdir()
        place.rmdir()
    except FileNotFoundError:
        return
    except OSError as error:
        _log.warning("a clone of layers stays: %s", error)
