"""The kernel's overlayfs as the judge of layers alone: over their images it shows the merged tree."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.difference import layers_alone
from indexer.errors import FormatError
from indexer.merge import merge
from indexer.toc import Kind, Member
from tests.support import kernel_erofs
from tests.support.erofs_images import (
    DEVICES,
    content_files,
    expected,
    stacks,
    without_hidden_xattrs,
    written,
)
from tests.support.kernel_erofs import Seen
from tests.support.members import directory, file, hardlink, opaque, whiteout
from tests.support.overlay import overlay_mounted
from tests.support.trees import layer_stacks


@pytest.fixture(scope="module")
def layer_files(tmp_path_factory) -> list[Path]:
    return content_files(tmp_path_factory.mktemp("layers"))


def seen_by_kernel(stack: list[list[Member]], devices: list[Path], where: Path) -> dict[bytes, Seen]:
    """What the kernel's overlayfs shows of the layers' images, and that each shows what was written."""
    images = []
    for number, root in enumerate(layers_alone(stack or [[]])):
        path = where / f"image{number}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(written(root))
        images.append((path, expected(root)))
    by_tag = {device.tag: path for device, path in zip(DEVICES, devices, strict=True)}
    with kernel_erofs.attached([path for path, _ in images], by_tag, where / "mnt") as lowers:
        assert [kernel_erofs.walk(lower) for lower in lowers] == [seen for _, seen in images]
        with overlay_mounted(lowers, where) as mnt:
            return kernel_erofs.walk(mnt)


def comparable(seen: dict[bytes, Seen]) -> dict[bytes, Seen]:
    return {path: what._replace(ino=0, nlink=0) for path, what in seen.items()}


def without_devices_0_0(stack: list[list[Member]]) -> list[list[Member]]:
    """Overlayfs would take them for whiteouts, and list them where nothing is merged."""
    return [
        [m._replace(device=(1, 3)) if m.kind == Kind.CHARACTER and m.device == (0, 0) else m for m in members]
        for members in stack
    ]


def test_the_kernels_overlay_of_the_layers_is_the_merged_tree(layer_files, tmp_path_factory):
    where = tmp_path_factory.mktemp("kernel")
    numbers = iter(range(10_000))

    @settings(max_examples=60)
    @given(st.one_of(stacks(), layer_stacks().map(lambda stack: stack[: len(DEVICES)])))
    def check(stack):
        stack = without_devices_0_0(without_hidden_xattrs(stack))
        try:
            root = merge(stack)
        except FormatError:
            return
        written(root)  # gives the numbers that `expected` tells
        seen = seen_by_kernel(stack, layer_files, where / str(next(numbers)))
        assert comparable(seen) == comparable(expected(root))

    check()


def test_the_kernel_takes_every_mark(layer_files, tmp_path):
    stack = [
        [
            *(file(b"gone/%d" % n) for n in range(3)),
            *(file(path) for path in (b"d/old/x", b"d/kept/y", b"file", b"mark/a", b"mark/b", b"root")),
            directory(b"same", uid=7, xattrs=((b"user.x", b"1"),)),
            file(b"same/kept"),
            file(b"linked", 513, data_start=512),
        ],
        [
            *(whiteout(path) for path in (b"gone/0", b"gone/2", b"d/old", b"root", b"never", b"d/never")),
            *(file(b"d/old/new"), file(b"file/below"), opaque(b"mark"), file(b"mark/c"), file(b"same/new")),
            *(hardlink(path, b"linked", uid=9) for path in (b"other", b"same/third")),
        ],
        [opaque(b""), file(b"d/old/last"), file(b"only")],
    ]
    seen = []
    for count in (1, 2, 3):
        root = merge(stack[:count])
        written(root)
        seen.append(seen_by_kernel(stack[:count], layer_files, tmp_path / str(count)))
        assert comparable(seen[-1]) == comparable(expected(root))
    assert len({seen[1][path].ino for path in (b"linked", b"other", b"same/third")}) == 1
    assert set(seen[2]) == {b"", b"d", b"d/old", b"d/old/last", b"only"}
