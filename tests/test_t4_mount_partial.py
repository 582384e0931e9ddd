"""Pages that are here are read, though what is around them does not come: both drivers, the real kernel."""

import mmap
import os
import subprocess
import sys

import pytest
import trio

from lazyfs.mount.contents import Contents
from lazyfs.mount.errors import Refused
from lazyfs.mount.partial_reads import PATIENCE_S as PARTIAL_S
from lazyfs.mount.tree_answers import TreeAnswers
from lazyfs.mount.wire import ROOT_ID, Opcode
from tests.support.fuse_protocol import Client, ReadIn
from tests.support.mount_server import (
    PART_SIZE,
    PATIENCE_S,
    error_of,
    file,
    mounted,
    open_image,
    open_layers,
    write_image,
)

CONTENT = os.urandom(500_000)
PAGE = mmap.PAGESIZE
MAP_AND_TELL = """
import mmap, sys
with open(sys.argv[1], "rb") as file:
    mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
start = int(sys.argv[2])
sys.stdout.buffer.write(mapped[start : start + 100])
"""


@pytest.fixture
def image(tmp_path):
    return write_image(tmp_path / "image", [[file(b"big", CONTENT)]])


@pytest.mark.parametrize("driver", ["fuse", "erofs"])
def test_a_fault_on_a_page_that_is_here_is_served(image, tmp_path, driver):
    with mounted(image, tmp_path / "mnt", "partly", driver=driver, read_timeout_s=1000) as server:
        for start in range(0, PART_SIZE, PAGE):
            command = [sys.executable, "-c", MAP_AND_TELL, server.mount_point / "big", str(start)]
            told = subprocess.run(command, stdout=subprocess.PIPE, timeout=PATIENCE_S, check=True)
            assert told.stdout == CONTENT[start : start + 100]
        assert server.logged == ""


def test_a_direct_reader_waits_for_all_it_asked_for(image, tmp_path):
    """The kernel does not ask again for it."""
    with mounted(image, tmp_path / "mnt", "partly", read_timeout_s=2 * PARTIAL_S) as server:
        opened = os.open(server.mount_point / "big", os.O_RDONLY | os.O_DIRECT)
        with mmap.mmap(-1, 8 * PAGE) as buffer:
            assert error_of(lambda: os.preadv(opened, [buffer], 0)) == "ETIMEDOUT"
        os.close(opened)


@pytest.mark.parametrize(("flags", "answer"), [(0, Refused), (os.O_DIRECT, trio.TooSlowError)])
async def test_who_asks_tells_whether_it_is_the_page_cache(image, autojump_clock, flags, answer):
    tree = Client(TreeAnswers(open_image(image), Contents(open_layers(image, ["partly"]), 60)))
    asked = bytes(ReadIn(0, 0, 8 * PAGE, flags=flags))
    with pytest.raises(answer):
        await tree.ask(Opcode.READ, tree.look_up(ROOT_ID, b"big").nodeid, asked)
