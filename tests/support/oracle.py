"""Two trees compared in everything a reader can see: the oracle of what a mount shows."""

# Paths are bytes here, which pathlib does not take.
# ruff: noqa: PTH115, PTH118, PTH123

import errno
import os
import stat
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

READ_SIZE = 1 << 20
KINDS = {
    stat.S_IFREG: "regular file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symbolic link",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}
PROPERTIES = frozenset(
    {
        *("kind", "mode", "owner", "size", "mtime", "xattrs", "target", "device", "nlink"),
        *("content", "hard links"),
    }
)


@dataclass(frozen=True, slots=True)
class Tree:
    """Everything below a directory, and the directory itself under the path b"".

    Attributes:
        top: the directory.
        entries: path from `top` to what lstat says of it.
    """

    top: bytes
    entries: dict[bytes, os.stat_result]

    @classmethod
    def walk(cls, top: Path, without: Collection[bytes] = ()) -> "Tree":
        """Look at all but the paths `without` and what is below them."""
        start = os.fsencode(top)
        entries = {path: os.lstat(os.path.join(start, path)) for path in _paths(start, b"", without)}
        return cls(start, entries)

    def link_groups(self) -> dict[bytes, frozenset[bytes]]:
        """For each path of an inode with several names in this tree, all these names."""
        names = defaultdict(set)
        for path, status in self.entries.items():
            if not stat.S_ISDIR(status.st_mode):
                names[status.st_dev, status.st_ino].add(path)
        groups = [frozenset(group) for group in names.values() if len(group) > 1]
        return {path: group for group in groups for path in group}

    def properties(self, path: bytes) -> dict[str, Any]:
        """What can be known of `path` without reading it: property name to value."""
        status, full = self.entries[path], os.path.join(self.top, path)
        is_dir, is_link = stat.S_ISDIR(status.st_mode), stat.S_ISLNK(status.st_mode)
        facts: dict[str, Any] = {
            "kind": KINDS[stat.S_IFMT(status.st_mode)],
            "mode": f"{stat.S_IMODE(status.st_mode):04o}",
            "owner": f"{status.st_uid}:{status.st_gid}",
            "mtime": status.st_mtime_ns,
            "xattrs": _xattrs(full),
        }
        if not is_dir:
            facts["size"], facts["nlink"] = status.st_size, status.st_nlink
        if is_link:
            facts["target"] = os.readlink(full)
        if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
            facts["device"] = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
        return facts


def compare_trees(
    expected: Path, actual: Path, *, ignore: Collection[str] = (), without: Collection[bytes] = ()
) -> list[str]:
    """The differences between two trees, a line each, in path order; none if they are the same.

    Args:
        expected: the tree that is right.
        actual: the tree in question.
        ignore: names of PROPERTIES not to look at.
        without: paths to leave out, with all below them; b"" leaves out the attributes of the top alone.

    Directories have neither size nor link count here: file systems count them as they like.
    """
    assert set(ignore) <= PROPERTIES, set(ignore) - PROPERTIES
    right, wrong = Tree.walk(expected, without), Tree.walk(actual, without)
    lines = []
    for path in sorted(right.entries.keys() | wrong.entries.keys()):
        if path not in wrong.entries:
            lines.append(f"{show(path)}: missing")
        elif path not in right.entries:
            lines.append(f"{show(path)}: unexpected")
        else:
            lines += _differences(path, right, wrong, ignore)
    if "hard links" not in ignore:
        lines += _link_differences(right.link_groups(), wrong.link_groups())
    return lines


def show(path: bytes) -> str:
    """A path as a message shows it."""
    return path.decode("utf-8", "backslashreplace") or "."


def _paths(top: bytes, below: bytes, without: Collection[bytes]) -> Iterator[bytes]:
    if below not in without:
        yield below
    with os.scandir(os.path.join(top, below)) as found:
        for entry in found:
            path = os.path.join(below, entry.name)
            if path in without:
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _paths(top, path, without)
            else:
                yield path


def _differences(path: bytes, right: Tree, wrong: Tree, ignore: Collection[str]) -> Iterator[str]:
    expected, actual = right.properties(path), wrong.properties(path)
    if expected["kind"] != actual["kind"]:
        if "kind" not in ignore:
            yield f"{show(path)}: kind: expected {expected['kind']}, got {actual['kind']}"
        return
    for name, value in expected.items():
        if name not in ignore and actual[name] != value:
            yield f"{show(path)}: {name}: expected {value}, got {actual[name]}"
    if expected["kind"] == "regular file" and expected["size"] == actual["size"] and "content" not in ignore:
        where = _first_difference(os.path.join(right.top, path), os.path.join(wrong.top, path))
        if where is not None:
            yield f"{show(path)}: content: differs from byte {where} on"


def _link_differences(
    right: dict[bytes, frozenset[bytes]], wrong: dict[bytes, frozenset[bytes]]
) -> Iterator[str]:
    for path in sorted(right.keys() | wrong.keys()):
        alone = frozenset([path])
        expected, actual = right.get(path, alone), wrong.get(path, alone)
        if expected != actual:
            yield f"{show(path)}: hard links: expected {_show_group(expected)}, got {_show_group(actual)}"


def _show_group(group: frozenset[bytes]) -> str:
    return " = ".join(show(path) for path in sorted(group))


def _xattrs(path: bytes) -> dict[str, bytes]:
    try:
        names = sorted(os.listxattr(path, follow_symlinks=False))
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return {}
        raise
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in names}


def _first_difference(expected: bytes, actual: bytes) -> int | None:
    """The first byte at which two files of one size differ."""
    with open(expected, "rb") as right, open(actual, "rb") as wrong:
        offset = 0
        while True:
            chunk, other = right.read(READ_SIZE), wrong.read(READ_SIZE)
            if chunk != other:
                same = zip(range(len(chunk)), chunk, other, strict=False)
                return offset + next((i for i, a, b in same if a != b), min(len(chunk), len(other)))
            if not chunk:
                return None
            offset += len(chunk)
