"""Looking around in an image without a mount: entries, and patterns over them."""

import fnmatch
import os
import re
import stat
from collections.abc import Callable, Iterator
from typing import Any, Final

from msgspec import Struct

from indexer.erofs.format import ROOT_NID
from indexer.erofs.read import Inode, MetadataImage
from lazyfs.errors import NotFound

_MAGIC: Final = re.compile(rb"[*?\[]")
_TWICE: Final = (b"**", b"**")
_LETTERS: Final = {
    stat.S_IFREG: "f",
    stat.S_IFDIR: "d",
    stat.S_IFLNK: "l",
    stat.S_IFCHR: "c",
    stat.S_IFBLK: "b",
    stat.S_IFIFO: "p",
    stat.S_IFSOCK: "s",
}


class Entry(Struct, frozen=True):
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

    def stat(self) -> os.stat_result:
        """As os.lstat would tell it; all three times are that of modification, the device is 0."""
        inode = self.inode
        seconds = inode.mtime_ns // 1_000_000_000
        fields = (inode.mode, inode.nid, 0, inode.nlink, inode.uid, inode.gid, inode.size)
        times = dict.fromkeys(("st_atime_ns", "st_mtime_ns", "st_ctime_ns"), inode.mtime_ns)
        exact = dict.fromkeys(("st_atime", "st_mtime", "st_ctime"), inode.mtime_ns / 1_000_000_000)
        blocks = {"st_blksize": 4096, "st_blocks": -(-inode.size // 512), "st_rdev": inode.rdev}
        return os.stat_result((*fields, seconds, seconds, seconds), times | exact | blocks)

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
        raise NotFound(f"the image has no /{os.fsdecode(path.lstrip(b'/'))}")
    return make_entry(image, path.strip(b"/"), nid)


def make_entry(image: MetadataImage, path: bytes, nid: int) -> Entry:
    """The entry of an inode under a path."""
    inode = image.inode(nid)
    return Entry(path, inode, image.readlink(nid) if stat.S_ISLNK(inode.mode) else b"")


def children(image: MetadataImage, directory: Entry) -> list[Entry]:
    """The entries of a directory by name; of anything else, none."""
    if directory.letter != "d":
        return []
    return [
        make_entry(image, _joined(directory.path, name), nid)
        for name, nid, _ in image.entries(directory.inode.nid)
    ]


def below(image: MetadataImage, top: Entry, max_depth: int | None = None) -> Iterator[tuple[int, Entry]]:
    """(depth, entry) of `top` and everything below it, depth first, by name."""
    stack = [(0, top)]
    while stack:
        depth, entry = stack.pop()
        yield depth, entry
        if max_depth is None or depth < max_depth:
            stack.extend((depth + 1, child) for child in reversed(children(image, entry)))


def glob(image: MetadataImage, pattern: bytes) -> Iterator[Entry]:
    """The entries whose paths match, in the order of names; as pathlib.Path.glob from the root.

    "*", "?" and "[...]" match within one component; "**" is any number of directories, without following
    symlinks. Symlinks to directories that other components name or match are followed. ".." matches nothing.
    """
    parts = [part for part in pattern.split(b"/") if part not in (b"", b".")]
    parts = [part for part, after in zip(parts, [*parts[1:], b""], strict=False) if (part, after) != _TWICE]
    seen: set[bytes] = set()
    for entry in _globbed(image, make_entry(image, b"", ROOT_NID), parts):
        if entry.path not in seen:
            seen.add(entry.path)
            yield entry


def _globbed(image: MetadataImage, entry: Entry, parts: list[bytes]) -> Iterator[Entry]:
    if not parts:
        yield entry
        return
    part, rest = parts[0], parts[1:]
    if part == b"**":
        for _, found in below(image, entry):
            if found.letter == "d":
                yield from _globbed(image, found, rest)
        return
    directory = _followed(image, entry)
    if directory is None:
        return
    if not _MAGIC.search(part):
        nid = image.lookup(directory.inode.nid, part) if part != b".." else None
        found_there = [] if nid is None else [make_entry(image, _joined(entry.path, part), nid)]
    else:
        found_there = [c for c in children(image, directory) if fnmatch.fnmatchcase(c.name, part)]
    for child in found_there:
        yield from _globbed(image, child, rest)


def _followed(image: MetadataImage, entry: Entry) -> Entry | None:
    """The directory that an entry is or leads to, under the entry's own path."""
    if entry.letter == "l":
        nid = image.resolve(entry.path)
        entry = entry if nid is None else make_entry(image, entry.path, nid)
    return entry if entry.letter == "d" else None


def _joined(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name


class Query(Struct, frozen=True):
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
