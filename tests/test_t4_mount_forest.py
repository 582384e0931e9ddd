"""A directory of virtual files, and the answers for it: ours, and through pyfuse3."""

import errno
import os
import stat

import pyfuse3
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyfuse3 import FUSEError

from lazyfs.mount.errors import Refused
from lazyfs.mount.forest import ROOT, Forest, VirtualFile
from lazyfs.mount.forest_answers import ForestAnswers
from lazyfs.mount.layer_files import LayerFileOperations
from lazyfs.mount.wire import Opcode
from tests.support import fuse_protocol as c
from tests.support.fuse_protocol import Client
from tests.support.mount_server import Behaviour, FakeLayer

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


@given(st.lists(st.integers(2, 9)))
def test_what_is_put_back_keeps_its_number_and_the_next_one_is_new(numbers):
    forest = Forest()
    for number in numbers:
        forest.put_back(number, FILE)
    assert set(forest.files) == set(numbers)
    assert forest.add(FILE) == max(numbers, default=ROOT) + 1


@pytest.fixture
def forest():
    return Forest()


@pytest.fixture
def operations(forest):
    return LayerFileOperations(forest, 10)


@pytest.fixture
def kernel(forest):
    return Client(ForestAnswers(forest, 10))


def refusal(call, *arguments) -> str:
    with pytest.raises(Refused) as caught:
        call(*arguments)
    return errno.errorcode[caught.value.errno]


async def errno_of(awaitable) -> str:
    with pytest.raises(FUSEError) as caught:
        await awaitable
    return errno.errorcode[caught.value.errno]


async def test_a_file_has_its_size_and_its_bytes(forest, kernel, operations):
    number = forest.add(FILE)
    entry = await operations.lookup(ROOT, b"%d" % number, CTX)
    ours = kernel.look_up(ROOT, b"%d" % number)
    assert (entry.st_ino, entry.st_size, entry.st_blocks) == (number, 2048, 4)
    assert (ours.nodeid, ours.attr.size, ours.attr.blocks) == (number, 2048, 4)
    assert (entry.st_mode, entry.entry_timeout) == (ours.attr.mode, ours.entry_valid)
    assert stat.S_ISREG((await operations.getattr(number, CTX)).st_mode)
    assert bytes(kernel.attributes(number)) == bytes(ours.attr)
    opened = await operations.open(number, os.O_RDONLY, CTX)
    for offset, size in ((0, 4096), (5, 7), (2047, 2), (2048, 1)):
        expected = CONTENT[offset : offset + size]
        assert bytes(await operations.read(opened.fh, offset, size)) == expected
        assert await kernel.read(number, offset, size) == expected


async def test_the_root_is_a_directory_with_nothing_in_files(forest, kernel, operations):
    number = forest.add(FILE)
    assert stat.S_ISDIR((await operations.getattr(ROOT, CTX)).st_mode)
    assert stat.S_ISDIR(kernel.attributes(ROOT).mode)
    assert (await operations.lookup(number, b".", CTX)).st_ino == number
    assert kernel.look_up(number, b".").nodeid == number
    for parent, name in ((number, b"%d" % number), (ROOT, b"nothing")):
        assert await errno_of(operations.lookup(parent, name, CTX)) == "ENOENT"
        assert refusal(kernel.look_up, parent, name) == "ENOENT"


async def test_a_file_that_was_taken_away_is_stale(forest, kernel, operations):
    number = forest.add(FILE)
    forest.remove(number)
    assert await errno_of(operations.getattr(number, CTX)) == "ESTALE"
    assert await errno_of(operations.read(number, 0, 1)) == "ESTALE"
    assert await errno_of(operations.lookup(ROOT, b"%d" % number, CTX)) == "ENOENT"
    assert refusal(kernel.attributes, number) == "ESTALE"
    assert refusal(kernel.ask_now, Opcode.READ, number, c.read_body(0, 1)) == "ESTALE"
    assert refusal(kernel.ask_now, Opcode.OPEN, number, bytes(c.OpenIn())) == "ESTALE"
    assert kernel.ask_now(Opcode.RELEASE, number) == b""
    assert refusal(kernel.look_up, ROOT, b"%d" % number) == "ENOENT"
    assert repr(forest) == f"<Forest of 0 files, the last one was {number}>"


def test_who_has_a_file_open_is_counted(forest, kernel):
    changes = []
    number = forest.add(FILE._replace(users=changes.append))
    opened = kernel.ask_now(Opcode.OPEN, number, bytes(c.OpenIn()))
    assert c.OpenOut.from_buffer_copy(opened).open_flags == 2  # KEEP_CACHE
    kernel.ask_now(Opcode.OPEN, number, bytes(c.OpenIn()))
    kernel.ask_now(Opcode.RELEASE, number, bytes(24))
    assert changes == [1, 1, -1]


async def test_what_is_away_is_waited_for(forest, kernel):
    number = forest.add(VirtualFile(FakeLayer(CONTENT, "remote"), len(CONTENT)))
    assert callable(kernel.ask_now(Opcode.READ, number, c.read_body(0, 9)))
    assert await kernel.read(number, 7, 9) == CONTENT[7:16]


def test_a_forest_is_not_listed(kernel):
    for opcode in (Opcode.READDIR, Opcode.READDIRPLUS, Opcode.STATFS, Opcode.OPENDIR, Opcode.READLINK):
        assert refusal(kernel.ask_now, opcode, ROOT, c.read_body(0, 4096)) == "ENOSYS"


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_APPEND])
async def test_pyfuse3_opens_nothing_for_writing(forest, operations, flags):
    assert await errno_of(operations.open(forest.add(FILE), flags, CTX)) == "EROFS"


async def test_through_pyfuse3_every_change_is_refused(operations):
    arguments = {"setattr": 5, "mknod": 5, "rename": 6, "create": 5, "mkdir": 4, "link": 4, "setxattr": 4}
    for name in (*arguments, "unlink", "rmdir", "symlink", "write", "removexattr"):
        assert await errno_of(getattr(operations, name)(*[None] * arguments.get(name, 3))) == "EROFS"


async def test_closing_and_forgetting_through_pyfuse3_are_nothing(operations):
    await operations.forget([(ROOT, 1)])
    await operations.release(7)


@pytest.mark.parametrize(
    ("behaviour", "expected", "logged"),
    [
        pytest.param(how, name, text, marks=pytest.mark.expect_log(text))
        for how, name, text in [
            ("unreachable", "EIO", r"cannot answer read\(\d+, 0, 10\): no route"),
            ("refused", "EACCES", "other credentials"),
            ("missing", "ENOENT", "no such blob"),
            ("corrupt", "EIO", "expected sha256:00, got sha256:11"),
            ("buggy", "EIO", r"ERROR lazyfs.mount.layer_files: a bug, while answering read\(\d+, 0, 10\)"),
            ("short", "EIO", "a bug"),
            ("stalled", "ETIMEDOUT", r"no answer within 10 s \[ETIMEDOUT\]"),
        ]
    ],
)
async def test_a_failing_layer_is_an_errno_and_a_line_of_log(
    forest, operations, autojump_clock, behaviour: Behaviour, expected, logged
):
    number = forest.add(VirtualFile(FakeLayer(CONTENT, behaviour), len(CONTENT)))
    assert await errno_of(operations.read(number, 0, 10)) == expected
    assert await errno_of(operations.read(number, 0, 10)) == expected
