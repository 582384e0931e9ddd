"""The kernel as the judge of metadata images: it mounts them, and shows what went in."""

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings

from indexer.erofs import format as erofs
from indexer.erofs.format import Device
from indexer.erofs.read import MetadataImage
from indexer.merge import merge
from indexer.toc import Kind, Member
from indexer.tree import MAX_DEPTH
from tests.support import kernel_erofs
from tests.support.erofs_images import (
    CONTENTS,
    DEVICE_SIZE,
    compiled,
    content_files,
    expected,
    file,
    stacks,
    without_hidden_xattrs,
    written,
)
from tests.support.kernel_erofs import Seen


@pytest.fixture(scope="module")
def layer_files(tmp_path_factory) -> list[Path]:
    return content_files(tmp_path_factory.mktemp("layers"))


def seen_by_kernel(image: bytes, devices: list[Path], where: Path) -> dict[bytes, Seen]:
    where.mkdir()
    (where / "image").write_bytes(image)
    with kernel_erofs.mounted(where / "image", devices) as mnt:
        return kernel_erofs.walk(mnt)


def test_the_kernel_reads_what_was_written(layer_files, tmp_path_factory):
    where = tmp_path_factory.mktemp("kernel")
    numbers = iter(range(10_000))

    @settings(max_examples=60)
    @given(stacks())
    def check(layers):
        root = merge(without_hidden_xattrs(layers))
        image = written(root)
        assert seen_by_kernel(image, layer_files, where / str(next(numbers))) == expected(root)

    check()


def test_the_kernel_reads_everything_extreme(layer_files, tmp_path):
    capability = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)
    acl = struct.pack("<IHHIHHIHHI", 2, 1, 7, 2**32 - 1, 4, 5, 2**32 - 1, 32, 5, 2**32 - 1)
    members = [
        Member(b"", Kind.DIRECTORY, mode=0o1755, uid=5, xattrs=((b"user.root", b"r" * 600),)),
        *(file(b"many/%06d" % number, number % 3, 512 * (number % 200)) for number in range(20_000)),
        file(b"/".join([b"deep"] * MAX_DEPTH), 600, 1024),
        file(b"capable", 5, 512, mode=0o755, xattrs=((b"security.capability", capability),)),
        Member(b"acl", Kind.DIRECTORY, xattrs=((b"system.posix_acl_default", acl), (b"user.x", b"1"))),
        *(file(b"x" * size, size) for size in range(1, 256)),
        *(Member(b"links/%d" % size, Kind.SYMLINK, link=b"t" * size) for size in range(1, 4096, 89)),
        file(b"old", mtime_ns=-(10**18) - 1),
        file(b"owned", uid=2**32 - 2, gid=2**32 - 2, mode=0o7777),
        Member(b"null", Kind.CHARACTER, device=(0, 0)),
        Member(b"disk", Kind.BLOCK, device=(4095, 2**20 - 1)),
        *(Member(b"hard/%d" % number, Kind.HARDLINK, link=b"capable", mode=0o755) for number in range(50)),
        *(file(b"xattrs/%d" % size, 1, xattrs=((b"user.v", bytes(size)),)) for size in range(0, 1500, 50)),
        file(b"heavy", 1, xattrs=tuple((b"user.%d" % n, b"v" * 60_000) for n in range(4))),
    ]
    root = merge([members])
    assert seen_by_kernel(written(root), layer_files, tmp_path / "extreme") == expected(root)


def test_the_kernel_reads_files_beyond_4_gib(tmp_path):
    size, start = (5 << 30) + 3, 7 * 512
    device = tmp_path / "device"
    with device.open("wb") as sparse:
        for offset in (start, start + (4 << 30), start + size - 8):
            sparse.seek(offset)
            sparse.write(b"%08d" % (offset % 10**8))
        sparse.truncate(2 << 40)
    largest = erofs.MAX_FILE_SIZE
    devices = [Device(b"sparse", (2 << 40) - 512)]
    (tmp_path / "image").write_bytes(
        compiled(file(b"f", size, start), file(b"g", largest, 512), devices=devices)
    )
    with (
        kernel_erofs.mounted(tmp_path / "image", [device]) as mnt,
        (mnt / "f").open("rb") as f,
    ):
        assert [(mnt / name).stat().st_size for name in "fg"] == [size, largest]
        for offset in (0, 4 << 30, size - 8):
            f.seek(offset)
            assert f.read(8) == b"%08d" % ((start + offset) % 10**8)
        with (mnt / "g").open("rb") as g:
            g.seek(start + size - 8 - 512)
            assert g.read(8) == b"%08d" % ((start + size - 8) % 10**8)
            g.seek(largest - 8)
            assert g.read() == bytes(8)


def test_the_kernel_counts_the_blocks_of_the_image_and_all_layers(layer_files, tmp_path):
    content = compiled(file(b"f", 9, 512))
    (tmp_path / "image").write_bytes(content)
    with kernel_erofs.mounted(tmp_path / "image", layer_files) as mnt:
        assert os.statvfs(mnt).f_blocks * 512 == MetadataImage(content).total_size


def test_the_kernel_tells_a_thousand_layers_apart(tmp_path):
    paths = [tmp_path / str(number) for number in range(1000)]
    for path in paths:
        path.write_text(path.name.rjust(1024))
    layers = [[file(path.name.encode(), 1024)] for path in paths]
    (tmp_path / "image").write_bytes(written(merge(layers), [Device(b"", 1024)] * 1000))
    with kernel_erofs.mounted(tmp_path / "image", paths) as mnt:
        seen = kernel_erofs.walk(mnt)
    assert {int(name) for name in seen if name} == set(range(1000))
    assert all(what.content == name.rjust(1024) for name, what in seen.items() if name)


def test_the_kernel_takes_empty_and_repeated_layers(tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "same").write_bytes(CONTENTS[0])
    paths = [tmp_path / "empty", tmp_path / "same", tmp_path / "same"]
    devices = [Device(b"empty", 0), Device(b"same", DEVICE_SIZE), Device(b"same", DEVICE_SIZE)]
    root = merge([[], [file(b"a", 9, 512)], [file(b"b", 9, 512)]])
    seen = seen_by_kernel(written(root, devices), paths, tmp_path / "work")
    assert seen[b"a"].content == seen[b"b"].content == CONTENTS[0][512:521]
