"""Copies out of an image: attributes as they were, and targets that somebody has prepared."""

import os
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from indexer.erofs.read import MetadataImage
from indexer.errors import FormatError
from lazyfs.image.image import Image
from lazyfs.image.inside.browse import entry_at
from lazyfs.image.inside.extract import CopyOptions, Extractor
from tests.support.memory_images import memory_image
from tests.support.tars import directory, fifo, file, tar

MTIME = 1_577_934_245
OWNER = {"uid": os.getuid(), "gid": os.getgid()}
IMAGE = memory_image(
    tar(
        directory(b"d", mode=0o777, **OWNER),
        file(b"d/f", b"content", mode=0o666, mtime=str(MTIME), **OWNER),
        fifo(b"d/p", mode=0o666, mtime=str(MTIME), **OWNER),
        directory(b"bad", xattrs={b"security.capability": b"none"}, **OWNER),
        file(b"bad/f", b"x", **OWNER),
    )
)


@contextmanager
def opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def copy(path: bytes, target: Path, image: Image = IMAGE) -> None:
    with opened(target) as descriptor:
        entry = entry_at(image.metadata, path)
        await Extractor(image, CopyOptions(recursive=True, archive=True)).copy(entry, descriptor, entry.name)


async def test_everything_keeps_mode_and_time_whatever_the_umask(tmp_path):
    before = os.umask(0o077)
    try:
        await copy(b"d", tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o777
    for name, kind in (("f", stat.S_ISREG), ("p", stat.S_ISFIFO)):
        found = (tmp_path / "d" / name).stat()
        assert kind(found.st_mode)
        assert (stat.S_IMODE(found.st_mode), found.st_mtime) == (0o666, MTIME)


async def test_a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "f")

    def waits(*_: object) -> None:
        raise AssertionError("it waits for somebody who reads the pipe")

    before = signal.signal(signal.SIGALRM, waits)
    signal.alarm(5)
    try:
        with pytest.raises(OSError, match="f"):
            await copy(b"d/f", tmp_path)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


async def test_what_the_target_refuses_leaves_nothing_open(tmp_path):
    before = open_files()
    with pytest.raises(OSError):  # no capability looks so
        await copy(b"bad", tmp_path)
    assert open_files() == before


async def test_a_damaged_directory_leaves_nothing_open(tmp_path):
    tree = IMAGE.metadata
    data = bytearray(tree._view)
    nid = tree.resolve(b"d/f").to_bytes(8, "little")
    at = data.index(nid)
    data[at : at + 8] = b"\xff" * 8
    damaged = replace(IMAGE, metadata=MetadataImage(data))
    before = open_files()
    with pytest.raises(FormatError):
        await copy(b"d", tmp_path, damaged)
    assert open_files() == before
