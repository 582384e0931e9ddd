"""The oracle of trees sees every kind of change, and none where there is none."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.oracle import PROPERTIES, compare_trees

BIG = bytes(range(256)) * 12_000


@pytest.fixture
def trees(tmp_path: Path) -> tuple[Path, Path]:
    """Two trees with one thing of every kind, the same in all respects."""
    first, second = tmp_path / "expected", tmp_path / "actual"
    grow(first)
    grow(second)
    return first, second


def grow(top: Path) -> None:
    (top / "dir/sub").mkdir(parents=True)
    (top / "dir/file").write_bytes(b"content")
    (top / "dir/other").write_bytes(b"content")
    (top / "dir/big").write_bytes(BIG)
    os.link(top / "dir/file", top / "linked")
    (top / "symlink").symlink_to("dir/file")
    os.mkfifo(top / "fifo")
    os.mknod(top / "char", 0o20644, os.makedev(1, 3))
    (top / os.fsdecode(b"caf\xe9")).write_bytes(b"")
    os.setxattr(top / "dir/file", "user.name", b"value\0")
    os.setxattr(top / "dir/sub", "trusted.name", b"value")
    settle(top)


def settle(top: Path) -> None:
    """Give everything the same time."""
    for path in [*top.rglob("*"), top]:
        os.utime(path, ns=(10**18 + 7, 10**18 + 7), follow_symlinks=False)


def test_equal_trees_have_no_differences(trees: tuple[Path, Path]) -> None:
    assert compare_trees(*trees) == []


def replace(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


CHANGES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "mode": (lambda t: (t / "dir/other").chmod(0o4644), ["dir/other: mode: expected 0644, got 4644"]),
    "owner": (lambda t: os.chown(t / "dir", 5, 6), ["dir: owner: expected 0:0, got 5:6"]),
    "owner of a symlink": (
        lambda t: os.lchown(t / "symlink", 7, 0),
        ["symlink: owner: expected 0:0, got 7:0"],
    ),
    "size": (lambda t: (t / "dir/other").write_bytes(b"con"), ["dir/other: size: expected 7, got 3"]),
    "content": (
        lambda t: (t / "dir/other").write_bytes(b"conTent"),
        ["dir/other: content: differs from byte 3 on"],
    ),
    "content, far": (
        lambda t: flip(t / "dir/big", 2_500_000),
        ["dir/big: content: differs from byte 2500000 on"],
    ),
    "xattr value": (
        lambda t: os.setxattr(t / "dir/file", "user.name", b"value"),
        [
            f"{name}: xattrs: expected {{'user.name': b'value\\x00'}}, got {{'user.name': b'value'}}"
            for name in ("dir/file", "linked")
        ],
    ),
    "xattr gone": (
        lambda t: os.removexattr(t / "dir/sub", "trusted.name"),
        ["dir/sub: xattrs: expected {'trusted.name': b'value'}, got {}"],
    ),
    "target": (
        lambda t: replace(t / "symlink", lambda p: p.symlink_to("dir/fil_")),
        ["symlink: target: expected b'dir/file', got b'dir/fil_'"],
    ),
    "device": (
        lambda t: replace(t / "char", lambda p: os.mknod(p, 0o20644, os.makedev(1, 5))),
        ["char: device: expected 1:3, got 1:5"],
    ),
    "kind": (
        lambda t: replace(t / "fifo", lambda p: p.write_bytes(b"")),
        ["fifo: kind: expected fifo, got regular file"],
    ),
    "missing": (lambda t: (t / os.fsdecode(b"caf\xe9")).unlink(), ["caf\\xe9: missing"]),
    "unexpected": (lambda t: (t / "dir/sub/new").mkdir(), ["dir/sub/new: unexpected"]),
    "a link broken": (
        lambda t: replace(t / "linked", lambda p: copy(t / "dir/file", p)),
        [
            "dir/file: nlink: expected 2, got 1",
            "linked: nlink: expected 2, got 1",
            "dir/file: hard links: expected dir/file = linked, got dir/file",
            "linked: hard links: expected dir/file = linked, got linked",
        ],
    ),
    "a link to the wrong file": (
        lambda t: replace(t / "dir/other", lambda p: os.link(t / "char", p)),
        [
            "char: nlink: expected 1, got 2",
            "dir/other: kind: expected regular file, got character device",
            "char: hard links: expected char, got char = dir/other",
            "dir/other: hard links: expected dir/other, got char = dir/other",
        ],
    ),
}


def copy(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes())
    os.setxattr(target, "user.name", os.getxattr(source, "user.name"))


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_a_line(trees: tuple[Path, Path], change: str) -> None:
    expected, actual = trees
    make, lines = CHANGES[change]
    make(actual)
    settle(actual)
    assert compare_trees(expected, actual) == lines


def test_a_nanosecond_is_a_difference(trees: tuple[Path, Path]) -> None:
    expected, actual = trees
    os.utime(actual / "symlink", ns=(0, 10**18 + 8), follow_symlinks=False)
    assert compare_trees(expected, actual) == [
        "symlink: mtime: expected 1000000000000000007, got 1000000000000000008"
    ]


def test_a_socket_has_a_kind_of_its_own(trees: tuple[Path, Path]) -> None:
    expected, actual = trees
    with socket.socket(socket.AF_UNIX) as server:
        (actual / "fifo").unlink()
        server.bind(str(actual / "fifo"))
    settle(actual)
    assert compare_trees(expected, actual) == ["fifo: kind: expected fifo, got socket"]


def test_what_is_ignored_or_left_out_is_no_difference(trees: tuple[Path, Path]) -> None:
    expected, actual = trees
    (actual / "dir/sub/new").mkdir()
    (actual / "dir/other").chmod(0o600)
    assert compare_trees(expected, actual, ignore={"mode", "mtime"}, without={b"dir/sub/new"}) == []
    assert compare_trees(expected, actual, ignore=PROPERTIES - {"mtime"}, without={b"dir"}) == []


def test_the_top_itself_is_compared_unless_left_out(trees: tuple[Path, Path]) -> None:
    expected, actual = trees
    actual.chmod(0o711)
    assert compare_trees(expected, actual) == [".: mode: expected 0755, got 0711"]
    assert compare_trees(expected, actual, without={b""}) == []


def test_a_property_that_does_not_exist_cannot_be_ignored(trees: tuple[Path, Path]) -> None:
    with pytest.raises(AssertionError, match="modes"):
        compare_trees(*trees, ignore={"modes"})
