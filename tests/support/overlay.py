"""Overlayfs twice: its lookups after the kernel's `filesystems/overlayfs.rst`, and the kernel itself."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from indexer.toc import Kind
from indexer.tree import Node

OPAQUE = (b"trusted.overlay.opaque", b"y")


def is_whiteout(node: Node) -> bool:
    return node.kind == Kind.CHARACTER and node.device == (0, 0)


def overlaid(lowers: Sequence[Node]) -> dict[bytes, tuple[int, Node]]:
    """What is seen of trees that lie over each other, the lowest first: by path, whose node is shown.

    Of a directory that several trees have, the attributes of the topmost are.
    """
    top_first = [*enumerate(lowers)][::-1]
    seen = {b"": top_first[0]}
    stack = [(b"", top_first)]
    while stack:
        path, directories = stack.pop()
        for name in {name for _, node in directories for name in node.children or ()}:
            found = _look_up(directories, name)
            if found:
                below = path + b"/" * bool(path) + name
                seen[below] = found[0]
                stack.append((below, found))
    return seen


def _look_up(directories: Sequence[tuple[int, Node]], name: bytes) -> list[tuple[int, Node]]:
    """What a name stands for: directories to be merged, or one thing; nothing where it is hidden."""
    found: list[tuple[int, Node]] = []
    for number, directory in directories:
        node = (directory.children or {}).get(name)
        if node is None:
            continue
        if node.kind != Kind.DIRECTORY:
            return found or ([] if is_whiteout(node) else [(number, node)])
        found.append((number, node))
        if OPAQUE in node.xattrs:
            break
    return found


@contextmanager
def overlay_mounted(lowers: Sequence[Path], where: Path) -> Iterator[Path]:
    """The kernel's overlay of mounted trees, the lowest first; its own things lie in `where`."""
    base, point = where / "base", where / "overlay"
    base.mkdir(parents=True)  # the kernel wants two lower directories
    point.mkdir()
    names = ":".join(map(str, [*reversed(lowers), base]))
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", f"lowerdir={names}", point], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", point], check=True)
