"""What must outlive the daemon's process: the mounts that are ordered, and how the kernel knows their layers.

One file, whole at any time. After a power cut only the orders count. After the death of the process alone, a
successor that is handed the FUSE connection goes on with it: it shows the same files under the same numbers.
"""

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from indexer.errors import IndexerError
from lazyfs.errors import BadReference, CacheError
from lazyfs.oci.chain import ChainOrder
from lazyfs.oci.json_fields import Fields, parse_object
from lazyfs.service.protocol import is_name, parse_order

_VERSION: Final = 1
_FILE: Final = "mounts.json"
_MOST: Final = 1_000_000
_LARGEST: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class SavedSession:
    """A FUSE connection, as its next server must know it.

    Attributes:
        token: which one; the descriptor is kept under it.
        minor: the version of the protocol.
        offered: what the kernel can do (`lazyfs.mount.answers.Negotiated`).
        last: the highest number that a file was ever given.
    """

    token: str
    minor: int
    offered: int
    last: int


@dataclass(frozen=True, slots=True)
class SavedFile:
    """A file of the forest.

    Attributes:
        inode: its number.
        size: in bytes.
        opens: how often the kernel has it open.
        layer: digest of the layer that it shows; "" for a metadata image.
        toc: digest of the table that the layer is read by.
        order: an image that has the layer; None for a metadata image.
        path: the metadata image; "" for a layer.
    """

    inode: int
    size: int
    opens: int
    layer: str = ""
    toc: str = ""
    order: ChainOrder | None = None
    path: str = ""


@dataclass(frozen=True, slots=True)
class SavedTree:
    """A tree with a FUSE connection of its own, as its next server must know it.

    Attributes:
        token: names the connection; the descriptor is kept under it.
        name: of the mount that it was made for.
        minor: the version of the protocol.
        offered: what the kernel can do.
        order: an image that has the layers.
        path: the metadata image.
        layers: pairs of digests, of each layer and of the table that it is read by.
    """

    token: str
    name: str
    minor: int
    offered: int
    order: ChainOrder
    path: str
    layers: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """A mount that is to be there.

    Attributes:
        name: the mount's name.
        order: what it shows, with the manifest's digest.
        driver: who presents it.
        mounted: whether it was mounted when this was written, or about to be.
        devices: the files of the forest that show its layers, with the `erofs` driver.
    """

    name: str
    order: ChainOrder
    driver: str = ""
    mounted: bool = True
    devices: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class State:
    """All of it.

    Attributes:
        session: the forest's connection; None where there is none to go on with.
        files: the forest's files.
        trees: trees beside the forest.
        entries: the mounts.
    """

    session: SavedSession | None = None
    files: tuple[SavedFile, ...] = ()
    trees: tuple[SavedTree, ...] = ()
    entries: tuple[Entry, ...] = ()


class Ledger:
    """The file.

    Args:
        directory: where it lies.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / _FILE

    def load(self) -> State:
        """What was saved last; what cannot be understood is left out. Blocks for the disk.

        Raises:
            CacheError: the disk fails.
        """
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return State()
        except OSError as error:
            raise CacheError(f"cannot read {self._path}: {error.strerror}") from error
        try:
            fields = parse_object(data, _FILE, _LARGEST)
            if fields.number("version") != _VERSION:
                return State()
            entries = tuple(filter(None, map(_entry, fields.children("mounts", _MOST))))
        except IndexerError:
            return State()
        with suppress(IndexerError, BadReference):
            session = _session(fields.child("session")) if "session" in fields else None
            files = tuple(map(_file, fields.children("files", _MOST)))
            return State(session, files, tuple(map(_tree, fields.children("trees", _MOST))), entries)
        return State(entries=entries)

    def save(self, state: State) -> None:
        """Keep this and nothing else. Blocks for the disk; on disk when it returns.

        Raises:
            CacheError: the disk fails; the file is as it was.
        """
        data = json.dumps(_plain(state)).encode()
        made = self._path.with_suffix(".new")
        try:
            with made.open("wb") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            made.rename(self._path)
            directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise CacheError(f"cannot keep {self._path}: {error.strerror}") from error


def _plain(state: State) -> dict[str, Any]:
    return {
        "version": _VERSION,
        "session": asdict(state.session) if state.session else None,
        "files": [asdict(file) for file in state.files],
        "trees": [
            asdict(tree) | {"layers": [" ".join(pair) for pair in tree.layers]} for tree in state.trees
        ],
        "mounts": [asdict(entry) | {"devices": " ".join(map(str, entry.devices))} for entry in state.entries],
    }


def _entry(fields: Fields) -> Entry | None:
    """A mount; None if it cannot be understood."""
    try:
        name, devices = fields.text("name"), fields.text("devices").split()
        if not is_name(name) or not all(number.isdecimal() for number in devices):
            return None
        order = _order(fields.child("order"))
        return Entry(name, order, fields.text("driver"), fields.flag("mounted"), tuple(map(int, devices)))
    except (IndexerError, BadReference, ValueError):  # ValueError: of too many digits
        return None


def _order(fields: Fields) -> ChainOrder:
    texts = {name: fields.text(name) for name in ("image", "manifest", "layer", "chain_id")}
    return parse_order({**texts, "layers": fields.number("layers")})


def _session(fields: Fields) -> SavedSession:
    token, minor = fields.text("token"), fields.number("minor")
    return SavedSession(token, minor, fields.number("offered"), fields.number("last"))


def _file(fields: Fields) -> SavedFile:
    layer = fields.text("layer")
    return SavedFile(
        inode=fields.number("inode"),
        size=fields.number("size"),
        opens=fields.number("opens"),
        layer=layer,
        toc=fields.text("toc"),
        order=_order(fields.child("order")) if layer else None,
        path=fields.text("path"),
    )


def _tree(fields: Fields) -> SavedTree:
    pairs = [pair.partition(" ") for pair in fields.texts("layers")]
    return SavedTree(
        token=fields.text("token"),
        name=fields.text("name"),
        minor=fields.number("minor"),
        offered=fields.number("offered"),
        order=_order(fields.child("order")),
        path=fields.text("path"),
        layers=tuple((layer, toc) for layer, _, toc in pairs),
    )
