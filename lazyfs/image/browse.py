"""Looking around in an image without a mount: entries, and patterns over them."""

import fnmatch
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from indexer.erofs_read import Inode, MetadataImage
from lazyfs.errors import NotFound

_LETTERS = {
    stat.S_IFREG: "f",
    stat.S_IFDIR: "d",
    stat.S_IFLNK: "l",
    stat.S_IFCHR: "c",
    stat.S_IFBLK: "b",
    stat.S_IFIFO: "p",
    stat.S_IFSOCK: "s",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """Something with a name in an image.

    Attributes:
        path: from the root, without a leading "/"; b"" is the root.
        inode: its inode.
        target: a symlink's target, else b"".
    """

    path: bytes
    inode: Inode
    target: bytes = b""

    @property
    def name(self) -> bytes:
        """The last component."""
        return self.path.rpartition(b"/")[2]

    @property
    def letter(self) -> str:
        """The type as find(1) writes it: f, d, l, c, b, p or s."""
        return _LETTERS[stat.S_IFMT(self.inode.mode)]

    def facts(self) -> dict[str, Any]:
        """What a program may want to know, as JSON can carry it."""
        inode = self.inode
        facts = {
            "path": "/" + os.fsdecode(self.path),
            "type": self.letter,
            "mode": f"{stat.S_IMODE(inode.mode):04o}",
            "uid": inode.uid,
            "gid": inode.gid,
            "size": inode.size,
            "mtime_ns": inode.mtime_ns,
            "inode": inode.nid,
            "links": inode.nlink,
        }
        if self.letter == "l":
            facts["target"] = os.fsdecode(self.target)
        if self.letter in "cb":
            facts["device"] = [os.major(inode.rdev), os.minor(inode.rdev)]
        return facts


def entry_at(image: MetadataImage, path: bytes, *, follow: bool = True) -> Entry:
    """What `path` leads to.

    Raises:
        NotFound: nothing.
    """
    nid = image.resolve(path, follow=follow)
    if nid is None:
        raise NotFound(f"the image has no /{os.fsdecode(path.strip(b'/'))}")
    return make_entry(image, path.strip(b"/"), nid)


def make_entry(image: MetadataImage, path: bytes, nid: int) -> Entry:
    """The entry of an inode under a path."""
    inode = image.inode(nid)
    return Entry(path, inode, image.readlink(nid) if stat.S_ISLNK(inode.mode) else b"")


def children(image: MetadataImage, directory: Entry) -> list[Entry]:
    """The entries of a directory by name; of anything else, itself alone."""
    if not stat.S_ISDIR(directory.inode.mode):
        return [directory]
    prefix = directory.path + b"/" if directory.path else b""
    return [make_entry(image, prefix + name, nid) for name, nid, _ in image.entries(directory.inode.nid)]


def below(image: MetadataImage, top: Entry, max_depth: int | None = None) -> Iterator[tuple[int, Entry]]:
    """(depth, entry) of `top` and everything below it, depth first, by name."""
    stack = [(0, top)]
    while stack:
        depth, entry = stack.pop()
        yield depth, entry
        if stat.S_ISDIR(entry.inode.mode) and (max_depth is None or depth < max_depth):
            stack.extend((depth + 1, child) for child in reversed(children(image, entry)))


@dataclass(frozen=True, slots=True)
class Query:
    """What `find` looks for; None is no condition.

    Attributes:
        name: a shell pattern for the last component.
        path: a shell pattern for the whole path, with its leading "/".
        letter: a type as find(1) writes it.
        min_size: bytes at least.
        max_size: bytes at most.
        newer_ns: modified after this time, nanoseconds since 1970.
    """

    name: str | None = None
    path: str | None = None
    letter: str | None = None
    min_size: int | None = None
    max_size: int | None = None
    newer_ns: int | None = None

    def matcher(self) -> Callable[[Entry], bool]:
        """A predicate for entries."""
        tests: list[Callable[[Entry], bool]] = []
        if self.name is not None:
            name = os.fsencode(self.name)
            tests.append(lambda entry: fnmatch.fnmatchcase(entry.name, name))
        if self.path is not None:
            path = os.fsencode(self.path)
            tests.append(lambda entry: fnmatch.fnmatchcase(b"/" + entry.path, path))
        if self.letter is not None:
            tests.append(lambda entry: entry.letter == self.letter)
        if self.min_size is not None:
            smallest = self.min_size
            tests.append(lambda entry: entry.inode.size >= smallest)
        if self.max_size is not None:
            largest = self.max_size
            tests.append(lambda entry: entry.inode.size <= largest)
        if self.newer_ns is not None:
            newer = self.newer_ns
            tests.append(lambda entry: entry.inode.mtime_ns > newer)
        return lambda entry: all(test(entry) for test in tests)
