"""A layer store's answers: what has a name in it, and what whoever uses it may do."""

import errno
import json
import os
import stat
from base64 import b64encode
from dataclasses import dataclass

import pytest
import trio

from indexer.member_table import Owners
from indexer.toc import Compression
from lazyfs.errors import NotFound, Unreachable
from lazyfs.mount.errors import Refused
from lazyfs.mount.store_answers import StoreAnswers
from lazyfs.mount.wire import ROOT_ID, Opcode, OpenFlag
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.storage_layer import SIZE_KEY, claimed_size, layer_by_digest, layer_by_toc
from tests.support.fuse_protocol import AttrOut, Client, EntryOut

REFERENCE = "registry.example:5000/app:1"
NAME = b64encode(REFERENCE.encode())
DIGEST = "sha256:" + "1" * 64
OTHER = "sha256:" + "2" * 64
TABLE = "sha256:" + "3" * 64
BLOB = bytes(range(256)) * 20


@dataclass(frozen=True)
class Layer:
    info: bytes = b'{"compression": 2}'
    size: int = len(BLOB)


class Shop:
    """Has one layer."""

    def __init__(self) -> None:
        self.uses = self.readers = 0
        self.lost = False

    async def find(self, reference: str, digest: str) -> Layer:
        await trio.lowlevel.checkpoint()
        if self.lost:
            raise Unreachable("the registry is away")
        if (reference, digest) != (REFERENCE, DIGEST):
            raise NotFound("no such layer")
        return Layer()

    async def mounted(self, layer: Layer, thread: int) -> bytes:
        await trio.lowlevel.checkpoint()
        return b"/mounts/for %d" % thread

    def open_blob(self, layer: Layer) -> "Shop":
        self.readers += 1
        return self

    async def read(self, start: int, size: int) -> bytes:
        if self.lost:
            await trio.sleep_forever()
        return BLOB[start : start + size]

    def close(self) -> None:
        self.readers -= 1

    def use(self, layer: Layer, change: int) -> None:
        self.uses += change


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture
def kernel(shop) -> Client:
    return Client(StoreAnswers(shop, 10))


async def walk(kernel: Client, *names: bytes) -> EntryOut:
    """What a path leads to."""
    number = ROOT_ID
    for name in names:
        entry = EntryOut.from_buffer_copy(await kernel.ask(Opcode.LOOKUP, number, name + b"\0"))
        assert (entry.entry_valid, entry.attr_valid) == (0, 0)
        number = entry.nodeid
    return entry


async def refusal(kernel: Client, opcode: int, number: int, body: bytes) -> str:
    with pytest.raises(Refused) as caught:
        await kernel.ask(opcode, number, body)
    return errno.errorcode[caught.value.errno]


async def test_a_layer_is_a_directory_with_a_link_a_document_and_a_blob(kernel):
    layer = await walk(kernel, NAME, DIGEST.encode())
    link, info, blob = [
        await walk(kernel, NAME, DIGEST.encode(), part) for part in (b"diff", b"info", b"blob")
    ]
    assert [stat.S_IFMT(entry.attr.mode) for entry in (layer, link, info, blob)] == [
        *(stat.S_IFDIR, stat.S_IFLNK, stat.S_IFREG, stat.S_IFREG)
    ]
    assert len({entry.nodeid for entry in (layer, link, info, blob)} | {ROOT_ID}) == 5
    assert await kernel.ask(Opcode.READLINK, link.nodeid) == b"/mounts/for %d" % os.getpid()
    assert await kernel.read(info.nodeid, 0, 4096) == Layer().info
    assert await kernel.read(info.nodeid, 3, 2) == Layer().info[3:5]
    assert (info.attr.size, blob.attr.size) == (len(Layer().info), len(BLOB))
    handle = kernel.open(blob.nodeid).fh
    assert await kernel.read(blob.nodeid, 4000, 100, handle) == BLOB[4000:4100]
    assert await kernel.read(blob.nodeid, 5000, 4096, handle) == BLOB[5000:]
    assert await kernel.read(blob.nodeid, len(BLOB), 4096, handle) == b""


@pytest.mark.parametrize(
    "names",
    [
        [b"x"],
        [b64encode(b"not a reference: ")],
        [b64encode(b"\xff\xfe")],
        [NAME[:-2] + b"*="],
        [NAME, b"sha256:1"],
        [NAME, b"sha512:" + b"1" * 128],
        [NAME, OTHER.encode()],
        [NAME, b"\xff"],
        [NAME, DIGEST.encode(), b"use"],
        [NAME, DIGEST.encode(), b""],
        [NAME, DIGEST.encode(), b"info", b"info"],
    ],
)
async def test_nothing_else_is_there(kernel, names):
    number = (await walk(kernel, *names[:-1])).nodeid if names[1:] else ROOT_ID
    assert await refusal(kernel, Opcode.LOOKUP, number, names[-1] + b"\0") == "ENOENT"


async def test_who_makes_use_or_removes_the_layer_is_counted_and_nothing_is_made_or_removed(kernel, shop):
    reference, layer = await walk(kernel, NAME), await walk(kernel, NAME, DIGEST.encode())
    for count in (1, 2):
        assert await refusal(kernel, Opcode.CREATE, layer.nodeid, bytes(16) + b"use\0") == "ENOENT"
        assert shop.uses == count
    assert await refusal(kernel, Opcode.RMDIR, reference.nodeid, DIGEST.encode() + b"\0") == "ENOENT"
    assert shop.uses == 1


async def test_nothing_else_can_be_changed(kernel, shop):
    layer = await walk(kernel, NAME, DIGEST.encode())
    for opcode, number, body in (
        (Opcode.CREATE, layer.nodeid, bytes(16) + b"other\0"),
        (Opcode.CREATE, ROOT_ID, bytes(16) + b"use\0"),
        (Opcode.RMDIR, ROOT_ID, NAME + b"\0"),
        (Opcode.RMDIR, layer.nodeid, b"diff\0"),
        (Opcode.MKDIR, ROOT_ID, bytes(8) + b"new\0"),
        (Opcode.UNLINK, layer.nodeid, b"info\0"),
    ):
        assert await refusal(kernel, opcode, number, body) == "EROFS"
    assert shop.uses == 0


async def test_directories_seem_to_be_empty(kernel):
    for names in ([NAME], [NAME, DIGEST.encode()]):
        assert kernel.list((await walk(kernel, *names)).nodeid, 0, 4096, plus=False) == []
    assert kernel.list(ROOT_ID, 0, 4096, plus=False) == []


async def test_what_another_process_has_named_is_stale_until_it_is_looked_up_again(kernel, shop):
    info = await walk(kernel, NAME, DIGEST.encode(), b"info")
    successor = Client(StoreAnswers(shop, 10))
    for opcode in (Opcode.GETATTR, Opcode.READLINK):
        assert await refusal(successor, opcode, info.nodeid, bytes(16)) == "ESTALE"
    assert (await walk(successor, NAME, DIGEST.encode(), b"info")).nodeid == info.nodeid
    answer = AttrOut.from_buffer_copy(await successor.ask(Opcode.GETATTR, info.nodeid, bytes(16)))
    assert (answer.attr_valid, answer.attr.size) == (0, len(Layer().info))


async def test_a_blob_passes_the_page_cache_by_and_whoever_has_it_open_reads_by_a_handle(kernel, shop):
    info, blob = [await walk(kernel, NAME, DIGEST.encode(), part) for part in (b"info", b"blob")]
    assert OpenFlag.DIRECT_IO not in OpenFlag(kernel.open(info.nodeid).open_flags)
    first, second = kernel.open(blob.nodeid), kernel.open(blob.nodeid)
    assert (first.open_flags, second.open_flags) == (OpenFlag.DIRECT_IO, OpenFlag.DIRECT_IO)
    assert first.fh != second.fh
    assert shop.readers == 2
    kernel.release(blob.nodeid, first.fh)
    assert shop.readers == 1
    with pytest.raises(Refused) as caught:  # so it is for a handle that another process has given
        await kernel.read(blob.nodeid, 0, 1, first.fh)
    assert caught.value.errno == errno.ESTALE
    assert await kernel.read(blob.nodeid, 0, 1, second.fh) == BLOB[:1]


async def test_nobody_waits_for_ever_and_a_registry_that_is_away_is_no_missing_layer(shop, mock_clock):
    mock_clock.autojump_threshold = 0
    kernel = Client(StoreAnswers(shop, 10))
    blob = await walk(kernel, NAME, DIGEST.encode(), b"blob")
    handle = kernel.open(blob.nodeid).fh
    shop.lost = True
    with pytest.raises(trio.TooSlowError):
        await kernel.read(blob.nodeid, 0, 1, handle)
    with pytest.raises(Unreachable):
        await walk(kernel, NAME, DIGEST.encode())


async def test_only_so_many_names_are_remembered(kernel, monkeypatch):
    monkeypatch.setattr("lazyfs.mount.store_answers._MOST_NODES", 3)
    first = await walk(kernel, b64encode(b"app0"))
    for number in range(1, 4):
        await walk(kernel, b64encode(b"app%d" % number))
    assert await refusal(kernel, Opcode.GETATTR, first.nodeid, bytes(16)) == "ESTALE"
    assert (await walk(kernel, b64encode(b"app0"))).nodeid == first.nodeid


# What is told of a layer.


def link(**annotations: str) -> Descriptor:
    return Descriptor("application/vnd.oci.image.layer.v1.tar+gzip", DIGEST, 77, annotations=annotations)


def test_a_layer_is_known_by_its_diff_id_or_by_its_table():
    told = {"compressed-diff-digest": DIGEST, "compressed-size": 77, "compression": 2}
    told |= {"uidset": [0, 5, 70_000], "gidset": [*range(7, 1007)]}
    owners = Owners(frozenset({5, 0, 70_000}), frozenset(range(1007)))
    known = {"diff-digest": OTHER, "diff-size": 1024}
    assert json.loads(layer_by_digest(link(), Compression.GZIP, OTHER, 1024, owners)) == told | known
    expected = {"toc-digest": TABLE, "flags": {"expected-layer-diffid": OTHER}}
    assert json.loads(layer_by_toc(link(), Compression.GZIP, TABLE, OTHER, owners)) == told | expected


@pytest.mark.parametrize(
    ("text", "size"), [("1024", 1024), ("0", 0), ("-1", None), ("", None), ("²", None), ("9" * 30, None)]
)
def test_an_annotation_may_claim_a_size(text, size):
    assert claimed_size(link(**{SIZE_KEY: text})) == size
    assert claimed_size(link()) is None
