"""export: one tar of the whole tree."""

import io
import subprocess
import tarfile

import pytest
import trio.testing
from msgspec.structs import replace

from indexer.errors import DigestMismatch
from lazyfs import api
from lazyfs.image.image import Image
from lazyfs.image.inside.flatten import flatten
from lazyfs.image.inside.pieces import PIECE_SIZE, WINDOW_SIZE, hand_on, pieces_of
from tests.support.memory_images import memory_image
from tests.support.oracle import compare_trees
from tests.support.tars import char, directory, fifo, file, hardlink, symlink, tar, whiteout

IMAGE = memory_image(
    tar(
        directory(b"d", mode=0o1777, uid=5, mtime="-1.5"),
        file(b"d/f", b"content" * 1000, mtime="1577934245.123456789", xattrs={b"user.a": b"\0=\n\xff"}),
        hardlink(b"a", b"d/f", mtime="1577934245.123456789"),
        symlink(b"l", b"\xfe" * 200),
        char(b"null", 1, 3, mode=0o666),
        fifo(b"p"),
        file(b"gone"),
        file(b"\xff\n", b"odd"),
    ),
    tar(whiteout(b"gone")),
)


async def exported(image: Image) -> bytes:
    pieces = []

    async def take(piece: bytes) -> None:
        assert len(piece) <= PIECE_SIZE
        pieces.append(piece)

    await flatten(image, take)
    return b"".join(pieces)


async def test_a_tar_has_all_of_the_tree_in_order_and_nothing_else():
    data = await exported(IMAGE)
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as found:
        members = {member.name: member for member in found}
        assert list(members) == [".", "a", "d", "d/f", "l", "null", "p", "\udcff\n"]
        assert found.extractfile("a").read() == b"content" * 1000
    assert (members["d"].mode, members["d"].uid, members["d"].mtime) == (0o1777, 5, -1.5)
    assert members["a"].pax_headers["mtime"] == "1577934245.123456789"
    assert members["a"].pax_headers["SCHILY.xattr.user.a"].encode("utf-8", "surrogateescape") == b"\0=\n\xff"
    assert (members["d/f"].type, members["d/f"].linkname) == (tarfile.LNKTYPE, "a")
    assert members["l"].linkname == "\udcfe" * 200
    assert (members["null"].devmajor, members["null"].devminor) == (1, 3)
    assert len(data) % 10240 == 0


async def test_the_same_image_gives_the_same_bytes():
    assert await exported(IMAGE) == await exported(IMAGE)


async def test_an_exported_image_is_itself_once_more():
    again = memory_image(await exported(IMAGE))
    assert await exported(again) == await exported(IMAGE)


@pytest.mark.parametrize("name", ["oddities", "nginx"])
def test_an_unpacked_export_is_what_umoci_unpacks(name, lab_image, unpacked, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    tar_x = [
        "tar",
        "--extract",
        "--preserve-permissions",
        "--numeric-owner",
        "--xattrs",
        "--xattrs-include=*",
    ]
    with (
        api.open_image(f"oci:{lab_image(name)}:latest", cache_dir=tmp_path / "cache") as image,
        subprocess.Popen(
            [*tar_x, "--directory", root], stdin=subprocess.PIPE, stderr=subprocess.PIPE
        ) as unpacking,
    ):
        image.export(unpacking.stdin)
        _, said = unpacking.communicate()
    assert [line for line in said.splitlines() if b"implausibly old time stamp" not in line] == []
    assert unpacking.returncode == 0
    assert compare_trees(unpacked(name), root) == []


class _Slow:
    """A layer whose reads wait until all that may be under way is; it counts what that is."""

    def __init__(self) -> None:
        self.under_way = self.most = 0

    def read_nowait(self, start: int, size: int) -> None:
        pass

    async def read(self, start: int, size: int) -> bytes:
        self.under_way += size
        self.most = max(self.most, self.under_way)
        await trio.testing.wait_all_tasks_blocked()
        self.under_way -= size
        return start.to_bytes(8, "big") + bytes(size - 8)


async def test_pieces_come_in_order_ahead_of_the_reader_in_bounded_memory():
    size = 64 << 20
    image, slow = memory_image(tar(file(b"f", b"x"))), _Slow()
    image = replace(image, metadata=_Sized(size), layers=[slow])
    starts = []

    async def take(piece: bytes) -> None:
        starts.append(int.from_bytes(piece[:8], "big"))

    await hand_on(image, pieces_of(1, size), take)
    assert starts == list(range(0, size, PIECE_SIZE))
    assert WINDOW_SIZE // 2 <= slow.most <= WINDOW_SIZE


class _Sized:
    """A tree of one file, larger than memory likes."""

    def __init__(self, size: int) -> None:
        self.size = size

    def inode(self, nid: int) -> "_Sized":
        return self

    def extent(self, nid: int) -> tuple[int, int]:
        return 0, 0


class _Damaged:
    """A layer that cannot be trusted."""

    def read_nowait(self, start: int, size: int) -> None:
        pass

    async def read(self, start: int, size: int) -> bytes:
        raise DigestMismatch("span 0", "this", "that")


async def test_damaged_content_ends_the_export_with_its_own_error():
    image = replace(memory_image(tar(file(b"f", b"x" * 5000))), layers=[_Damaged()])
    with pytest.raises(DigestMismatch):
        await exported(image)
