"""An additional layer store (containers/storage): where Podman and CRI-O look for layers before they pull.

    REFERENCE/DIGEST/diff    a link to where the layer is mounted, alone
    REFERENCE/DIGEST/info    what it is
    REFERENCE/DIGEST/blob    its bytes as the registry has them
    REFERENCE/DIGEST/use     to make it says that the layer is used; to remove DIGEST, that it is not any more

REFERENCE is an image's name in base64, DIGEST that of a layer or of the table of contents that an annotation
names. Names are there for whoever looks them up; directories seem to be empty, lest whoever goes through all
of a machine's files has us ask a registry. Nothing is made or removed: that ENOENT is the answer tells that
we have understood.

The kernel asks for each step of a path anew. What it names by a number that another process has given out is
unknown here (ESTALE), and then it comes again, from the root.
"""

import errno
import logging
import stat
from base64 import b64decode
from binascii import Error as Base64Error
from collections import OrderedDict
from collections.abc import Awaitable, Mapping
from functools import partial
from hashlib import sha256
from itertools import count
from secrets import randbits
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

import trio

from indexer.erofs.read import Inode
from indexer.errors import IndexerError
from indexer.tree import MAX_NAME
from lazyfs.errors import BadReference, NotFound
from lazyfs.mount import wire
from lazyfs.mount.answers import Answer, Answers, Data, Handler, Later
from lazyfs.mount.contents import Contents
from lazyfs.mount.errors import Refused
from lazyfs.mount.wire import ROOT_ID, Header, Opcode, OpenFlag, ReadIn
from lazyfs.oci.descriptor import readable_digest
from lazyfs.oci.reference import parse_reference

_log = logging.getLogger(__name__)

_DIFF: Final = b"diff"
_INFO: Final = b"info"
_BLOB: Final = b"blob"
_USE: Final = b"use"
_MODES: Final = {
    b"": stat.S_IFDIR | 0o555,
    _DIFF: stat.S_IFLNK | 0o777,
    _INFO: stat.S_IFREG | 0o444,
    _BLOB: stat.S_IFREG | 0o444,
}
_MOST_NODES: Final = 100_000
_BLOCK: Final = 4096
_HANDLE_BITS: Final = 63

T = TypeVar("T")


class StoredLayer(Protocol):
    """A layer that is to be had."""

    @property
    def info(self) -> bytes:
        """The document that says what it is (`lazyfs.oci.storage_layer`)."""

    @property
    def size(self) -> int:
        """Bytes of its blob."""


L = TypeVar("L", bound=StoredLayer)


class OpenBlob(Protocol):
    """A blob, as somebody has opened it."""

    async def read(self, start: int, size: int) -> bytes:
        """Bytes [start, start + size) of the blob, which has them; raises as methods of Stock do."""

    def close(self) -> None:
        """Nothing is read any more."""


class Stock(Protocol[L]):
    """Has layers. Methods that are awaited raise IndexerError or LazyfsError where they cannot."""

    async def find(self, reference: str, digest: str) -> L:
        """The layer of an image.

        Raises:
            NotFound: the image has none of this digest, or it cannot be shown lazily.
        """

    async def mounted(self, layer: L, thread: int) -> bytes:
        """The path where it is mounted, alone, with the owners that the thread is to see which asks."""

    def open_blob(self, layer: L) -> OpenBlob:
        """Its blob, for somebody who begins to read it."""

    def use(self, layer: L, change: int) -> None:
        """One user more (+1) or less (-1)."""


class _Node(NamedTuple, Generic[L]):
    """Something with a name; the root has none.

    Attributes:
        reference: the image, in the first directory below the root and all below it.
        digest: the layer, in its directory and all below it.
        part: "diff", "info" or "blob"; b"" of a directory.
        layer: what `digest` names.
    """

    reference: str = ""
    digest: str = ""
    part: bytes = b""
    layer: L | None = None

    @property
    def number(self) -> int:
        if not self.reference:
            return ROOT_ID
        path = f"{self.reference}\0{self.digest}\0{self.part.decode()}"
        return int.from_bytes(sha256(path.encode()).digest()[:7], "big") | 1 << 57


class StoreAnswers(Answers, Generic[L]):
    """Answers for a layer store.

    Args:
        stock: what is in it.
        timeout_s: how long anybody waits at most.
    """

    def __init__(self, stock: Stock[L], timeout_s: float) -> None:
        super().__init__(Contents((), timeout_s))
        self._stock = stock
        self._timeout_s = timeout_s
        self._root: _Node[L] = _Node()
        self._nodes: OrderedDict[int, _Node[L]] = OrderedDict()
        self._blobs: dict[int, OpenBlob] = {}
        self._handles = count(randbits(_HANDLE_BITS))  # none that another process has given out

    def handlers(self) -> Mapping[int, Handler]:
        """What only a store is asked for."""
        return {
            Opcode.OPEN: self._open,
            Opcode.RELEASE: self._release,
            Opcode.OPENDIR: _open_directory,
            Opcode.READDIR: _list_nothing,
            Opcode.STATFS: _statfs,
            Opcode.CREATE: self._create,
            Opcode.RMDIR: self._rmdir,
        }

    def answer(self, header: Header, body: memoryview) -> Answer:
        """As Answers.answer says; where a link leads depends on who asks."""
        if header.opcode == Opcode.READLINK:
            return self._readlink(header)
        return super().answer(header, body)

    def lookup(self, parent: int, name: bytes) -> Data | Later:
        """The entry `name`, at once or once its image has told.

        Raises:
            Refused: ENOENT, there is none; ESTALE, the directory was named by another process.
        """
        node = self._node(parent)
        if name == b".":
            return self._entry(node)
        if not node.reference:
            return self._entry(_Node(_reference(name)))
        if not node.digest:
            return partial(self._find, node.reference, _digest(name))
        if node.part or name not in _MODES or not name:
            raise Refused(errno.ENOENT)
        return self._entry(node._replace(part=name))

    async def _find(self, reference: str, digest: str) -> bytes:
        try:
            layer = await self._in_time(self._stock.find(reference, digest))
        except (NotFound, BadReference) as error:  # whoever asks pulls it as usual
            _log.info("%s of %s is not in store: %s", digest, reference, error)
            raise Refused(errno.ENOENT) from error
        return self._entry(_Node(reference, digest, layer=layer))

    def attributes(self, nodeid: int) -> bytes:
        """What stat(2) tells.

        Raises:
            Refused: ESTALE.
        """
        return wire.encode_attributes(_inode(self._node(nodeid)), 0)

    def read(self, nodeid: int, asked: ReadIn) -> Data | Later:
        """Bytes of a document or a blob, fewer than were asked for only at its end.

        Raises:
            Refused: ESTALE, also for a blob that was opened with another process.
        """
        node = self._node(nodeid)
        layer = _layer(node)
        if node.part == _INFO:
            return layer.info[asked.offset : asked.offset + asked.size]
        blob = self._blobs.get(asked.handle)
        if blob is None:
            raise Refused(errno.ESTALE)
        size = min(asked.size, layer.size - asked.offset)
        if size <= 0:
            return b""

        async def read() -> bytes:
            return await self._in_time(blob.read(asked.offset, size))

        return read

    def _open(self, nodeid: int, _body: memoryview) -> bytes:
        """A blob passes the page cache by: what came before it turned out to be wrong must not stay there."""
        node = self._node(nodeid)
        if node.part != _BLOB:
            return wire.encode_open(OpenFlag.KEEP_CACHE)
        handle = next(self._handles)
        self._blobs[handle] = self._stock.open_blob(_layer(node))
        return wire.encode_open(OpenFlag.DIRECT_IO, handle)

    def _release(self, _nodeid: int, body: memoryview) -> bytes:
        blob = self._blobs.pop(wire.decode_release(body), None)
        if blob is not None:
            blob.close()
        return b""

    def _readlink(self, header: Header) -> Later:
        layer = _layer(self._node(header.nodeid))

        async def readlink() -> bytes:
            return await self._in_time(self._stock.mounted(layer, header.pid))

        return readlink

    def _create(self, nodeid: int, body: memoryview) -> bytes:
        """One that is used, if it is "use" that would be made; nothing is."""
        node = self._node(nodeid)
        if not node.digest or wire.decode_create(body) != _USE:
            raise Refused(errno.EROFS)
        self._stock.use(_layer(node), +1)
        raise Refused(errno.ENOENT)

    def _rmdir(self, nodeid: int, body: memoryview) -> bytes:
        """One that is not used any more, if it is a layer that would be removed; nothing is."""
        parent = self._node(nodeid)
        if not parent.reference or parent.digest:
            raise Refused(errno.EROFS)
        wanted: _Node[L] = _Node(parent.reference, _digest(wire.decode_name(body)))
        self._stock.use(_layer(self._node(wanted.number)), -1)
        raise Refused(errno.ENOENT)

    async def _in_time(self, work: Awaitable[T]) -> T:
        with trio.fail_after(self._timeout_s):
            return await work

    def _node(self, number: int) -> _Node[L]:
        if number == ROOT_ID:
            return self._root
        node = self._nodes.get(number)
        if node is None:
            raise Refused(errno.ESTALE)
        return node

    def _entry(self, node: _Node[L]) -> bytes:
        number = node.number
        if number != ROOT_ID:
            self._nodes[number] = node
            self._nodes.move_to_end(number)
            while len(self._nodes) > _MOST_NODES:
                self._nodes.popitem(last=False)
        return wire.encode_entry(_inode(node), 0)


def _layer(node: _Node[L]) -> L:
    if node.layer is None:
        raise Refused(errno.EISDIR)
    return node.layer


def _inode(node: _Node[L]) -> Inode:
    size = 0
    if node.layer is not None:
        size = {_INFO: len(node.layer.info), _BLOB: node.layer.size}.get(node.part, 0)
    links = 1 if node.part else 2
    return Inode(node.number, _MODES[node.part], links, 0, 0, size, 0, 0, has_xattrs=False)


def _reference(name: bytes) -> str:
    try:
        text = b64decode(name, validate=True).decode()
        parse_reference(text)
    except (Base64Error, UnicodeDecodeError, BadReference):
        raise Refused(errno.ENOENT) from None
    return text


def _digest(name: bytes) -> str:
    try:
        return readable_digest(name.decode())
    except (UnicodeDecodeError, IndexerError):
        raise Refused(errno.ENOENT) from None


def _open_directory(_nodeid: int, _body: memoryview) -> bytes:
    return wire.encode_open(OpenFlag.KEEP_CACHE)


def _list_nothing(_nodeid: int, _body: memoryview) -> bytes:
    return b""


def _statfs(_nodeid: int, _body: memoryview) -> bytes:
    return wire.encode_statfs(block_size=_BLOCK, blocks=0, files=0, longest_name=MAX_NAME)
