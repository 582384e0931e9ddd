"""A directory of virtual files, and the answers for it."""

import errno
import os
import stat

import pyfuse3
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyfuse3 import FUSEError

from lazyfs.mount.forest import ROOT, Forest, VirtualFile
from lazyfs.mount.layer_files import LayerFileOperations
from tests.support.mount_server import FakeLayer

CTX = pyfuse3.RequestContext()
CONTENT = bytes(range(256)) * 8
FILE = VirtualFile(FakeLayer(CONTENT, "local"), len(CONTENT))


@given(st.lists(st.sampled_from(["add", "remove"])))
def test_a_number_is_given_once_and_found_by_its_name_while_it_stands(steps):
    forest, given_out, standing = Forest(), [], []
    for step in steps:
        if step == "add":
            given_out.append(forest.add(FILE))
            standing.append(given_out[-1])
        elif standing:
            forest.remove(standing.pop(0))
    assert len(set(given_out)) == len(given_out)
    assert ROOT not in given_out
    assert [number for number in given_out if forest.find(b"%d" % number) == number] == standing
    assert set(forest.files) == set(forest.readers) == set(standing)


@given(st.one_of(st.binary(max_size=300), st.integers().map(lambda number: b"%d" % number)))
def test_no_other_name_finds_anything(name):
    forest = Forest()
    number = forest.add(FILE)
    assert forest.find(name) == (number if name == b"%d" % number else None)
    assert forest.find(b"0%d" % number) is None
    assert forest.find("²".encode()) is None


@pytest.fixture
def forest():
    return Forest()


@pytest.fixture
def operations(forest):
    return LayerFileOperations(forest, 10)


async def errno_of(awaitable) -> str:
    with pytest.raises(FUSEError) as caught:
        await awaitable
    return errno.errorcode[caught.value.errno]


async def test_a_file_has_its_size_and_its_bytes(forest, operations):
    number = forest.add(FILE)
    entry = await operations.lookup(ROOT, b"%d" % number, CTX)
    assert (entry.st_ino, entry.st_size, entry.st_blocks) == (number, 2048, 4)
    assert stat.S_ISREG((await operations.getattr(number, CTX)).st_mode)
    opened = await operations.open(number, os.O_RDONLY, CTX)
    for offset, size in ((0, 4096), (5, 7), (2047, 2), (2048, 1)):
        assert bytes(await operations.read(opened.fh, offset, size)) == CONTENT[offset : offset + size]


async def test_the_root_is_a_directory_with_nothing_in_files(forest, operations):
    number = forest.add(FILE)
    assert stat.S_ISDIR((await operations.getattr(ROOT, CTX)).st_mode)
    assert (await operations.lookup(number, b".", CTX)).st_ino == number
    assert await errno_of(operations.lookup(number, b"%d" % number, CTX)) == "ENOENT"
    assert await errno_of(operations.lookup(ROOT, b"nothing", CTX)) == "ENOENT"


async def test_a_file_that_was_taken_away_is_stale(forest, operations):
    number = forest.add(FILE)
    forest.remove(number)
    assert await errno_of(operations.getattr(number, CTX)) == "ESTALE"
    assert await errno_of(operations.read(number, 0, 1)) == "ESTALE"
    assert await errno_of(operations.lookup(ROOT, b"%d" % number, CTX)) == "ENOENT"
    assert repr(forest) == f"<Forest of 0 files, the last one was {number}>"
