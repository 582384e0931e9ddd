"""Copies out of an image into a directory, never through a symlink of the target.

Every name is created relative to an open directory and without following links, so what the image says of
symlinks, or what somebody plants in the target meanwhile, cannot lead a write elsewhere.
"""

import errno
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import trio
from msgspec import Struct

from indexer.erofs.read import Inode
from lazyfs.errors import WrongKind
from lazyfs.image.image import Image
from lazyfs.image.inside.browse import Entry, children

_log = logging.getLogger(__name__)

_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class CopyOptions(Struct, frozen=True):
    """How to copy.

    Attributes:
        recursive: directories too.
        archive: keep owners, all mode bits, xattrs and special files, as far as the user may.
    """

    recursive: bool = False
    archive: bool = False


class Extractor:
    """Copies entries of an image."""

    def __init__(self, image: Image, options: CopyOptions) -> None:
        self._image = image
        self._options = options

    async def copy(self, entry: Entry, directory: int, name: bytes) -> None:
        """Copy an entry to `name` in an open directory.

        Raises:
            IndexerError: content is damaged.
            LazyfsError: content cannot be had, or this entry cannot be copied so.
            OSError: the target refuses.
        """
        if stat.S_ISDIR(entry.inode.mode):
            await self._copy_directory(entry, directory, name)
            return
        with _told_of(directory, name):
            if stat.S_ISREG(entry.inode.mode):
                await self._copy_file(entry, directory, name)
            elif stat.S_ISLNK(entry.inode.mode):
                self._copy_link(entry, directory, name)
            else:
                self._copy_special(entry, directory, name)

    async def _copy_directory(self, entry: Entry, directory: int, name: bytes) -> None:
        if not self._options.recursive:
            raise WrongKind(f"/{os.fsdecode(entry.path)} is a directory; copy it with -r")
        stack: list[tuple[int, Entry, list[Entry]]] = []
        try:
            stack.append(self._enter(entry, directory, name))
            while stack:
                opened, current, left = stack[-1]
                if not left:
                    self._describe(current, opened)
                    stack.pop()
                    os.close(opened)
                    continue
                child = left.pop()
                if stat.S_ISDIR(child.inode.mode):
                    stack.append(self._enter(child, opened, child.name))
                else:
                    await self.copy(child, opened, child.name)
        finally:
            for opened, *_ in stack:
                os.close(opened)

    def _enter(self, entry: Entry, directory: int, name: bytes) -> tuple[int, Entry, list[Entry]]:
        left = children(self._image.metadata, entry)[::-1]
        with _told_of(directory, name):
            with suppress(FileExistsError):  # a directory is merged into; anything else the open refuses
                os.mkdir(name, 0o700, dir_fd=directory)
            opened = os.open(name, _OPEN_DIRECTORY, dir_fd=directory)
        return opened, entry, left

    async def _copy_file(self, entry: Entry, directory: int, name: bytes) -> None:
        try:
            target = os.open(name, _CREATE | os.O_EXCL, 0o600, dir_fd=directory)
        except FileExistsError:
            # Opening a pipe that nobody reads would wait for ever.
            target = os.open(name, _CREATE | os.O_TRUNC | os.O_NONBLOCK, 0o600, dir_fd=directory)
            if not stat.S_ISREG(os.fstat(target).st_mode):
                os.close(target)
                raise OSError(errno.EEXIST, "is there and no regular file", os.fsdecode(name)) from None
        try:
            async for piece in self._image.pieces(entry.inode.nid):
                await trio.to_thread.run_sync(_write_all, target, piece)
            self._describe(entry, target)
        finally:
            os.close(target)

    def _copy_link(self, entry: Entry, directory: int, name: bytes) -> None:
        try:
            os.symlink(entry.target, name, dir_fd=directory)
        except FileExistsError:
            if not stat.S_ISLNK(os.lstat(name, dir_fd=directory).st_mode):
                raise
            os.unlink(name, dir_fd=directory)
            os.symlink(entry.target, name, dir_fd=directory)
        if self._options.archive:
            with _as_far_as_allowed():
                os.chown(name, entry.inode.uid, entry.inode.gid, dir_fd=directory, follow_symlinks=False)
        times = (entry.inode.mtime_ns, entry.inode.mtime_ns)
        os.utime(name, ns=times, dir_fd=directory, follow_symlinks=False)

    def _copy_special(self, entry: Entry, directory: int, name: bytes) -> None:
        if not self._options.archive:
            _log.warning(
                "left out /%s: neither file, directory nor symlink (use -a)", os.fsdecode(entry.path)
            )
            return
        try:
            os.mknod(name, entry.inode.mode, entry.inode.rdev, dir_fd=directory)
        except PermissionError as error:
            if error.errno != errno.EPERM or os.geteuid() == 0:
                raise
            _log.warning("left out /%s: only root makes device nodes", os.fsdecode(entry.path))
            return
        opened = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            self._describe(entry, f"/proc/self/fd/{opened}")
        finally:
            os.close(opened)

    def _describe(self, entry: Entry, opened: int | str) -> None:
        """Give an open copy the entry's attributes; content first, since writing drops capabilities."""
        inode = entry.inode
        mode = stat.S_IMODE(inode.mode)
        if not (self._options.archive and self._keep_owner(inode, opened)):
            mode &= 0o777  # a setuid bit would be for another user
        if self._options.archive:
            for name, value in self._image.metadata.xattrs(inode.nid).items():
                with _as_far_as_allowed():
                    os.setxattr(opened, name, value)
        os.chmod(opened, mode)  # noqa: PTH101  # mostly a descriptor
        os.utime(opened, ns=(inode.mtime_ns, inode.mtime_ns))

    @staticmethod
    def _keep_owner(inode: Inode, opened: int | str) -> bool:
        """Whether the copy has the entry's owner now; only root gives files away."""
        try:
            os.chown(opened, inode.uid, inode.gid)
        except PermissionError:
            if os.geteuid() == 0:
                raise
            return False
        return True


@contextmanager
def _as_far_as_allowed() -> Iterator[None]:
    """Let an ordinary user do without what only root may, as cp(1) does."""
    try:
        yield
    except PermissionError:
        if os.geteuid() == 0:
            raise


@contextmanager
def _told_of(directory: int, name: bytes) -> Iterator[None]:
    """Let what the system refuses be told of the whole path of `name` in an open directory."""
    try:
        yield
    except OSError as error:
        path = Path(f"/proc/self/fd/{directory}").readlink() / os.fsdecode(name)
        raise OSError(error.errno, error.strerror, str(path)) from error


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
