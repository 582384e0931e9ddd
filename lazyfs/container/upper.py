"""An overlay's upper directory as the members of a layer.

Sources: Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories"; image-spec `layer.md`,
"Whiteouts". The order is that of a walk by name, whiteouts before their siblings, so that the same tree gives
the same layer. What is read may still be changed by its container: no symbolic link is followed, and nothing
but what lies in the directory is read.
"""

import logging
import os
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from indexer.toc import Kind, Member
from lazyfs.errors import ContainerError

_log = logging.getLogger(__name__)

_OVERLAY: Final = (b"trusted.overlay.", b"user.overlay.")
# Of this machine, not of the files: labels and signatures are made where a file is.
_LOCAL: Final = frozenset({b"security.selinux", b"security.ima", b"security.evm"})
_WHITEOUT: Final = b".wh."
_OPAQUE: Final = b".wh..wh..opq"
_KINDS: Final = {
    stat.S_IFREG: Kind.REGULAR,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHARACTER,
    stat.S_IFBLK: Kind.BLOCK,
    stat.S_IFIFO: Kind.FIFO,
}
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class UpperMember(NamedTuple):
    """A member, and its content if it has any.

    Attributes:
        member: as it is to stand in the tar.
        content: descriptor of the open file, good until the next member is asked for; -1 for none.
    """

    member: Member
    content: int = -1


@dataclass(frozen=True, slots=True)
class _Found:
    """A name in a directory.

    Attributes:
        name: the name.
        status: of what it stands for.
        xattrs: all of them.
    """

    name: bytes
    status: os.stat_result
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)

    def overlay(self, name: bytes) -> bytes | None:
        """The value of an attribute of overlayfs's own."""
        return next((self.xattrs[p + name] for p in _OVERLAY if p + name in self.xattrs), None)

    @property
    def is_whiteout(self) -> bool:
        """Whether it stands for nothing."""
        mode = self.status.st_mode
        if stat.S_ISCHR(mode):
            return self.status.st_rdev == 0
        return stat.S_ISREG(mode) and not self.status.st_size and self.overlay(b"whiteout") is not None


def upper_members(upper: Path, mount_points: Collection[str] = ()) -> Iterator[UpperMember]:
    """The members of the layer that an upper directory is, the root's own first.

    Args:
        upper: the directory.
        mount_points: paths, from the root on, that were made for mounts: left out where they are still empty.

    Raises:
        ContainerError: it holds what no layer can say.
        OSError: it cannot be read.
    """
    top = os.open(upper, _DIRECTORY)
    try:
        left_out = _empty_mount_points(upper, mount_points)
        yield from _Walk(left_out).directory(top, b"", _look(top, b"."))
    finally:
        os.close(top)


class _Walk:
    """Remembers which inodes have been seen."""

    def __init__(self, left_out: Collection[bytes]) -> None:
        self._left_out = left_out
        self._first_names: dict[tuple[int, int], bytes] = {}

    def directory(self, descriptor: int, path: bytes, found: _Found) -> Iterator[UpperMember]:
        """A directory and all below it."""
        _refuse_redirections(found, path)
        yield UpperMember(_member(found, path))
        if found.overlay(b"opaque") == b"y":
            yield UpperMember(Member(_joined(path, _OPAQUE), Kind.REGULAR))
        present = []
        for name in sorted(map(os.fsencode, os.listdir(descriptor))):
            child = _look(descriptor, name)
            if name.startswith(_WHITEOUT):
                raise ContainerError(f"{_shown(path, name)}: no layer can hold a name that begins with .wh.")
            if child.is_whiteout:
                yield UpperMember(Member(_joined(path, _WHITEOUT + name), Kind.REGULAR))
            elif _joined(path, name) not in self._left_out:
                present.append(child)
        for child in present:
            yield from self._child(descriptor, path, child)

    def _child(self, parent: int, directory: bytes, found: _Found) -> Iterator[UpperMember]:
        path, status = _joined(directory, found.name), found.status
        if stat.S_ISDIR(status.st_mode):
            with _opened(parent, found.name, _DIRECTORY) as descriptor:
                yield from self.directory(descriptor, path, found)
            return
        if stat.S_ISSOCK(status.st_mode):
            _log.warning("%s: a socket, which no layer can hold, is left out", _shown(path))
            return
        _refuse_redirections(found, path)
        inode = (status.st_dev, status.st_ino)
        first = self._first_names.setdefault(inode, path) if status.st_nlink > 1 else path
        if first != path:
            member = _member(found, path)
            yield UpperMember(member._replace(kind=Kind.HARDLINK, size=0, link=first, xattrs=()))
        elif stat.S_ISREG(status.st_mode):
            with _opened(parent, found.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK) as content:
                yield UpperMember(_member(found, path), content)
        elif stat.S_ISLNK(status.st_mode):
            target = os.fsencode(os.readlink(found.name, dir_fd=parent))
            yield UpperMember(_member(found, path)._replace(link=target))
        else:
            yield UpperMember(_member(found, path))


def _look(directory: int, name: bytes) -> _Found:
    status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    path = b"/proc/self/fd/%d/%s" % (directory, name)
    xattrs = {}
    with suppress(OSError):  # a file system without them
        for key in os.listxattr(path, follow_symlinks=False):
            xattrs[os.fsencode(key)] = os.getxattr(path, key, follow_symlinks=False)
    return _Found(name, status, xattrs)


def _member(found: _Found, path: bytes) -> Member:
    status = found.status
    kind = _KINDS[stat.S_IFMT(status.st_mode)]
    is_device = kind in (Kind.CHARACTER, Kind.BLOCK)
    kept = (
        pair for pair in found.xattrs.items() if not pair[0].startswith(_OVERLAY) and pair[0] not in _LOCAL
    )
    return Member(
        path,
        kind,
        stat.S_IMODE(status.st_mode),
        status.st_uid,
        status.st_gid,
        status.st_mtime_ns,
        size=status.st_size if kind is Kind.REGULAR else 0,
        device=(os.major(status.st_rdev), os.minor(status.st_rdev)) if is_device else (0, 0),
        xattrs=tuple(sorted(kept)),
    )


def _refuse_redirections(found: _Found, path: bytes) -> None:
    for name, words in ((b"metacopy", "only attributes"), (b"redirect", "the place of another directory")):
        if found.overlay(name) is not None:
            raise ContainerError(
                f"{_shown(path)} has {words} of what lies below, as overlayfs's {name.decode()} leaves it: "
                "no layer can say that; mount the overlay without"
            )


def _empty_mount_points(upper: Path, mount_points: Collection[str]) -> set[bytes]:
    """Those that hold nothing but others of them."""
    left_out: set[bytes] = set()
    names = [os.fsencode(point).strip(b"/") for point in mount_points]
    for name in sorted(filter(None, names), key=lambda name: name.count(b"/"), reverse=True):
        path = Path(os.fsdecode(name))
        with suppress(OSError):
            status = (upper / path).lstat()
            if stat.S_ISDIR(status.st_mode):
                inside = {_joined(name, os.fsencode(child.name)) for child in (upper / path).iterdir()}
                empty = inside <= left_out
            else:
                empty = stat.S_ISREG(status.st_mode) and not status.st_size
            if empty:
                left_out.add(name)
    return left_out


@contextmanager
def _opened(directory: int, name: bytes, flags: int) -> Iterator[int]:
    descriptor = os.open(name, flags | os.O_CLOEXEC, dir_fd=directory)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _joined(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name


def _shown(*parts: bytes) -> str:
    return "/" + os.fsdecode(b"/".join(filter(None, parts)))
