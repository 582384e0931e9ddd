"""An overlay's upper directory as the members of a layer.

Sources: Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories"; image-spec `layer.md`,
"Whiteouts". The order is that of a walk by name, whiteouts before their siblings, so that the same tree gives
the same layer. What is read may still be changed by its container: no symbolic link is followed, and nothing
but what lies in the directory is read.
"""

import errno
import logging
import os
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from msgspec import Struct

from indexer.tar.header import MAX_PATH
from indexer.toc import Kind, Member
from lazyfs.errors import ContainerError

_log = logging.getLogger(__name__)

_TRUSTED: Final = b"trusted.overlay."
_USER: Final = b"user.overlay."
_ESCAPED: Final = b"overlay."
"""After overlayfs's prefix: an attribute that the container has set, under the name without this."""
# Of this machine, not of the files: labels and signatures are made where a file is.
_LOCAL: Final = frozenset({b"security.selinux", b"security.ima", b"security.evm"})
_TOLD: Final = 60  # bytes of a path that is too long
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


class _Found(Struct, frozen=True):
    """A name in a directory.

    Attributes:
        name: the name.
        status: of what it stands for.
        xattrs: those of the file.
        marks: overlayfs's own attributes, without their prefix.
    """

    name: bytes
    status: os.stat_result
    xattrs: Mapping[bytes, bytes]
    marks: Mapping[bytes, bytes]


def upper_members(
    upper: Path, mount_points: Collection[str] = (), *, user_marks: bool | None = None
) -> Iterator[UpperMember]:
    """The members of the layer that an upper directory is, the root's own first.

    Args:
        upper: the directory.
        mount_points: paths, from the root on, that were made for mounts: left out where they are still empty.
        user_marks: overlayfs's marks are in `user.overlay.*`, as in a user namespace; else in
            `trusted.overlay.*`; the others are the container's own then. None: either are marks.

    Raises:
        ContainerError: it holds what no layer can say.
        OSError: it cannot be read.
    """
    prefixes = (_TRUSTED, _USER) if user_marks is None else (_USER,) if user_marks else (_TRUSTED,)
    yield from _Walk(_empty_mount_points(upper, mount_points), prefixes).tree(upper)


class _Level(NamedTuple):
    """A directory that is being walked.

    Attributes:
        descriptor: of it, open.
        path: from the upper directory on.
        left: names of what is to be told yet, the next one last.
    """

    descriptor: int
    path: bytes
    left: list[bytes]


class _Replaced(Exception):
    """Something else has a file's name by now."""


class _Walk:
    """Remembers which inodes have been seen. What goes while it walks is not there."""

    def __init__(self, left_out: Collection[bytes], prefixes: Sequence[bytes]) -> None:
        self._left_out = left_out
        self._prefixes = prefixes
        self._first_names: dict[tuple[int, int], bytes] = {}

    def tree(self, upper: Path) -> Iterator[UpperMember]:
        """A directory and all below it, however deep."""
        top = os.open(upper, _DIRECTORY)
        levels = [_Level(top, b"", [])]
        try:
            yield from self._directory(levels[-1], self._look(top, b"."))
            while levels:
                level = levels[-1]
                if not level.left:
                    os.close(levels.pop().descriptor)
                    continue
                name = level.left.pop()
                path = _joined(level.path, name)
                try:
                    found = self._look(level.descriptor, name)
                    if _stands_for_nothing(found):  # by now
                        yield UpperMember(_whiteout(level.path, name))
                    elif stat.S_ISDIR(found.status.st_mode):
                        levels.append(_Level(_directory_of(level.descriptor, name), path, []))
                        yield from self._directory(levels[-1], found)
                    else:
                        yield from self._other(level.descriptor, path, found)
                except FileNotFoundError:
                    continue
                except _Replaced:
                    level.left.append(name)
        finally:
            for level in levels:
                os.close(level.descriptor)

    def _directory(self, level: _Level, found: _Found) -> Iterator[UpperMember]:
        """A directory and what is gone from it; notes what is in it."""
        _refuse_redirections(found, level.path)
        yield UpperMember(_member(found, level.path))
        if found.marks.get(b"opaque") == b"y":
            yield UpperMember(Member(_joined(level.path, _OPAQUE), Kind.REGULAR))
        names = os.listdir(level.descriptor)  # noqa: PTH208  # of a descriptor
        for name in sorted(map(os.fsencode, names)):
            path = _joined(level.path, name)
            if name.startswith(_WHITEOUT):
                raise ContainerError(f"{_shown(path)}: no layer can hold a name that begins with .wh.")
            if len(path) > MAX_PATH:
                raise ContainerError(f"{_shown(path[:_TOLD])}...: this is too deep for a layer")
            with suppress(FileNotFoundError):
                if self._is_whiteout(level.descriptor, name):
                    yield UpperMember(_whiteout(level.path, name))
                elif path not in self._left_out:
                    level.left.append(name)
        level.left.reverse()

    def _other(self, parent: int, path: bytes, found: _Found) -> Iterator[UpperMember]:
        """What is no directory."""
        status = found.status
        if stat.S_ISSOCK(status.st_mode):
            _log.warning("%s: a socket, which no layer can hold, is left out", _shown(path))
            return
        _refuse_redirections(found, path)
        member, inode = _member(found, path), (status.st_dev, status.st_ino)
        first = self._first_names.get(inode)
        if first is not None:
            yield UpperMember(member._replace(kind=Kind.HARDLINK, size=0, link=first, xattrs=()))
            return
        with ExitStack() as stack:
            content = -1
            if stat.S_ISREG(status.st_mode):
                content = stack.enter_context(_content_of(parent, found))
            elif stat.S_ISLNK(status.st_mode):
                member = member._replace(link=_target_of(parent, found.name))
            if status.st_nlink > 1:
                self._first_names[inode] = path
            yield UpperMember(member, content)

    def _is_whiteout(self, directory: int, name: bytes) -> bool:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        is_empty = stat.S_ISREG(status.st_mode) and not status.st_size
        if not (is_empty or stat.S_ISCHR(status.st_mode)):
            return False  # without a look at its attributes
        return _stands_for_nothing(self._look(directory, name))

    def _look(self, directory: int, name: bytes) -> _Found:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        xattrs, marks = {}, {}
        for key, value in _xattrs(b"/proc/self/fd/%d/%s" % (directory, name)):
            prefix = next(filter(key.startswith, self._prefixes), None)
            if prefix is None:
                xattrs[key] = value
            elif key.startswith(prefix + _ESCAPED):
                xattrs[prefix + key.removeprefix(prefix + _ESCAPED)] = value
            else:
                marks[key.removeprefix(prefix)] = value
        return _Found(name, status, xattrs, marks)


def _stands_for_nothing(found: _Found) -> bool:
    mode = found.status.st_mode
    if stat.S_ISCHR(mode):
        return found.status.st_rdev == 0
    return stat.S_ISREG(mode) and not found.status.st_size and b"whiteout" in found.marks


def _whiteout(directory: bytes, name: bytes) -> Member:
    return Member(_joined(directory, _WHITEOUT + name), Kind.REGULAR)


def _directory_of(parent: int, name: bytes) -> int:
    try:
        return os.open(name, _DIRECTORY, dir_fd=parent)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise _Replaced from error
        raise


def _target_of(parent: int, name: bytes) -> bytes:
    """Where a symbolic link leads."""
    try:
        return os.fsencode(os.readlink(name, dir_fd=parent))
    except OSError as error:
        if error.errno == errno.EINVAL:  # it is none any more
            raise _Replaced from error
        raise


def _xattrs(path: bytes) -> Iterator[tuple[bytes, bytes]]:
    """All of them; none on a file system without."""
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        return
    for name in names:
        try:
            value = os.getxattr(path, name, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.ENOTSUP):
                raise
        else:
            yield os.fsencode(name), value


def _member(found: _Found, path: bytes) -> Member:
    status = found.status
    kind = _KINDS[stat.S_IFMT(status.st_mode)]
    is_device = kind in (Kind.CHARACTER, Kind.BLOCK)
    kept = (pair for pair in found.xattrs.items() if pair[0] not in _LOCAL)
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
        if name in found.marks:
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
def _content_of(directory: int, found: _Found) -> Iterator[int]:
    """What was looked at, open for reading; opening what has taken its place, a device, could do anything."""
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    with _closing(os.open(found.name, flags, dir_fd=directory)) as place:
        status = os.fstat(place)
        is_file = stat.S_ISREG(status.st_mode)  # inode numbers are used again
        if not is_file or (status.st_dev, status.st_ino) != (found.status.st_dev, found.status.st_ino):
            raise _Replaced
        with _closing(os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC)) as content:
            yield content


@contextmanager
def _closing(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _joined(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name


def _shown(*parts: bytes) -> str:
    return "/" + os.fsdecode(b"/".join(filter(None, parts)))
