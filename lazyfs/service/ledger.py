"""What must outlive the daemon's process: the mounts that are ordered, and how the kernel knows their layers.

`mounts.json` has all of it, for a successor of the same boot. Handed the FUSE connection, it goes on to show
the same files under the same numbers. After a power cut only the orders count: they are in `orders.json` too,
which is written when an order comes or goes, and alone is waited for until it is on disk.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from msgspec import Struct, to_builtins

from indexer.errors import IndexerError
from lazyfs.cache.files import sync_path
from lazyfs.cache.images import is_lasting
from lazyfs.errors import BadReference, CacheError
from lazyfs.oci.chain import ChainOrder
from lazyfs.oci.json_fields import Fields, parse_object
from lazyfs.service.protocol import is_name, parse_order

_VERSION: Final = 1
_ALL: Final = "mounts.json"
_ORDERS: Final = "orders.json"
_MOST: Final = 1_000_000
_LARGEST: Final = 1 << 30


class SavedSession(Struct, frozen=True):
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


class SavedStore(Struct, frozen=True):
    """A layer store, as its next server must know it.

    Attributes:
        directory: where it is mounted, or about to be.
        session: its connection; None before kernel and daemon have begun to talk.
    """

    directory: Path
    session: SavedSession | None


class SavedFile(Struct, frozen=True):
    """A file of the forest.

    Attributes:
        inode: its number.
        size: in bytes.
        opens: how often the kernel has it open.
        layer: digest of the layer that it shows; "" for a metadata image.
        toc: digest of the table that the layer is read by.
        order: an image that has the layer; None for a metadata image.
        path: the metadata image; "" for a layer, or for one that was kept in memory.
    """

    inode: int
    size: int
    opens: int
    layer: str = ""
    toc: str = ""
    order: ChainOrder | None = None
    path: str = ""


class SavedTree(Struct, frozen=True):
    """A tree with a FUSE connection of its own, as its next server must know it.

    Attributes:
        token: names the connection; the descriptor is kept under it.
        name: of the mount that it was made for.
        minor: the version of the protocol.
        offered: what the kernel can do.
        order: an image that has the layers.
        path: the metadata image; "" for one that was kept in memory.
        layers: pairs of digests, of each layer and of the table that it is read by.
    """

    token: str
    name: str
    minor: int
    offered: int
    order: ChainOrder
    path: str
    layers: tuple[tuple[str, str], ...]


class Entry(Struct, frozen=True):
    """A mount that is to be there.

    Attributes:
        name: the mount's name.
        order: what it shows, with the manifest's digest.
        driver: who presents it.
        mounted: whether it was mounted when this was written, or about to be.
        devices: the files of the forest that show its layers, with the `erofs` driver.
        again: whether it was there before, and is to be made again if it is not.
    """

    name: str
    order: ChainOrder
    driver: str = ""
    mounted: bool = True
    devices: tuple[int, ...] = ()
    again: bool = False


class State(Struct, frozen=True):
    """All of it.

    Attributes:
        session: the forest's connection; None where there is none to go on with.
        store: the layer store; None if there is to be none.
        files: the forest's files.
        trees: trees beside the forest.
        entries: the mounts.
        idle: mounts that nobody uses, and that may be ordered again. A successor of the same boot does not
            know them; as orders they stay on disk until they go, so that to be used again costs no write.
    """

    session: SavedSession | None = None
    files: tuple[SavedFile, ...] = ()
    trees: tuple[SavedTree, ...] = ()
    entries: tuple[Entry, ...] = ()
    idle: tuple[Entry, ...] = ()
    store: SavedStore | None = None


class Ledger:
    """The files.

    Args:
        directory: where they lie.
        boot_id: of this boot.
    """

    def __init__(self, directory: Path, boot_id: str) -> None:
        self._directory = directory
        self._boot_id = boot_id
        self._on_disk: list[dict[str, Any]] | None = None  # the orders; None while that is not known

    def load(self) -> State:
        """What was saved last; what cannot be understood is left out. Blocks for the disk.

        Raises:
            CacheError: the disk fails.
        """
        fields = self._read(_ALL)
        if fields is None or not self._is_of_this_boot(fields):
            orders = self._read(_ORDERS)
            return State(entries=_entries(orders)) if orders else State()
        entries = _entries(fields)
        with suppress(IndexerError, BadReference):
            session, store = _session(fields, "session"), _store(fields)
            files = tuple(map(_file, fields.children("files", _MOST)))
            trees = tuple(map(_tree, fields.children("trees", _MOST)))
            return State(session, files, trees, entries, store=store)
        return State(entries=entries)

    def save(self, state: State) -> None:
        """Keep this and nothing else. Blocks for the disk; when it returns the orders are on it.

        Raises:
            CacheError: the disk fails; each file is as it was, or whole and new.
        """
        ordered = sorted((*state.entries, *state.idle), key=lambda entry: entry.name)
        lasting = [entry for entry in ordered if entry.mounted or entry.again]
        orders = [_plain_entry(Entry(entry.name, entry.order)) for entry in lasting]
        if orders != self._on_disk:
            self._on_disk = None
            self._write(_ORDERS, {"mounts": orders}, durably=True)
            self._on_disk = orders
        self._write(_ALL, {"boot": self._boot_id, **_plain(state)}, durably=False)

    def _is_of_this_boot(self, fields: Fields) -> bool:
        with suppress(IndexerError):
            return fields.text("boot") == self._boot_id
        return False

    def _read(self, name: str) -> Fields | None:
        """A file's fields; None if it is not there, or is none of ours.

        Raises:
            CacheError: the disk fails.
        """
        path = self._directory / name
        try:
            fields = parse_object(path.read_bytes(), name, _LARGEST)
            return fields if fields.number("version") == _VERSION else None
        except (FileNotFoundError, IndexerError):
            return None
        except OSError as error:
            raise CacheError(f"cannot read {path}: {error.strerror}") from error

    def _write(self, name: str, document: Mapping[str, Any], *, durably: bool) -> None:
        path = self._directory / name
        made = path.with_suffix(".new")
        try:
            with made.open("wb") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(json.dumps({"version": _VERSION, **document}).encode())
                file.flush()
                if durably:
                    os.fsync(file.fileno())
            made.rename(path)
            if durably:
                sync_path(self._directory.resolve())
        except OSError as error:
            raise CacheError(f"cannot keep {path}: {error.strerror}") from error


def path_saved(metadata_file: Path) -> str:
    """A metadata image's path, for `SavedFile` and `SavedTree`."""
    return str(metadata_file) if is_lasting(metadata_file) else ""


def _plain(state: State) -> dict[str, Any]:
    return {
        "session": to_builtins(state.session) if state.session else None,
        "store": _plain_store(state.store) if state.store else None,
        "files": [to_builtins(file) for file in state.files],
        "trees": [
            {**to_builtins(tree), "layers": [" ".join(pair) for pair in tree.layers]} for tree in state.trees
        ],
        "mounts": [_plain_entry(entry) for entry in state.entries],
    }


def _plain_store(store: SavedStore) -> dict[str, Any]:
    return {"directory": str(store.directory), **(to_builtins(store.session) if store.session else {})}


def _plain_entry(entry: Entry) -> dict[str, Any]:
    return {**to_builtins(entry), "devices": " ".join(map(str, entry.devices))}


def _entries(fields: Fields) -> tuple[Entry, ...]:
    """The mounts that can be understood."""
    with suppress(IndexerError):
        return tuple(filter(None, map(_entry, fields.children("mounts", _MOST))))
    return ()


def _entry(fields: Fields) -> Entry | None:
    """A mount; None if it cannot be understood."""
    try:
        name, devices = fields.text("name"), fields.text("devices").split()
        if not is_name(name) or not all(number.isdecimal() for number in devices):
            return None
        order = _order(fields.child("order"))
        again = "again" in fields and fields.flag("again")
        numbers = tuple(map(int, devices))
        return Entry(name, order, fields.text("driver"), fields.flag("mounted"), numbers, again)
    except (IndexerError, BadReference, ValueError):  # ValueError: of too many digits
        return None


def _order(fields: Fields) -> ChainOrder:
    texts = {name: fields.text(name) for name in ("image", "manifest", "layer", "chain_id")}
    return parse_order({**texts, "layers": fields.number("layers"), "alone": fields.flag("alone")})


def _session(state: Fields, name: str) -> SavedSession | None:
    if name not in state:
        return None
    fields = state.child(name)
    token, minor = fields.text("token"), fields.number("minor")
    return SavedSession(token, minor, fields.number("offered"), fields.number("last"))


def _store(state: Fields) -> SavedStore | None:
    if "store" not in state:
        return None
    fields = state.child("store")
    session = _session(state, "store") if "token" in fields else None
    return SavedStore(Path(fields.text("directory")), session)


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
