"""What is kept of a snapshot, and the sqlite file that keeps it: each transaction is on disk at its end."""

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from msgspec import Struct

from lazyfs.errors import ConfigError
from lazyfs.oci.chain import ChainOrder
from lazyfs.snapshotter.filters import Selector
from lazyfs.snapshotter.labels import REF
from lazyfs.snapshotter.model import BadSnapshotCall, DiskRefused, Info, Kind

_VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE snapshots (
  id INTEGER PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  parent INTEGER REFERENCES snapshots(id),
  kind TEXT NOT NULL CHECK (kind IN ('view', 'active', 'committed')),
  created_ns INTEGER NOT NULL,
  updated_ns INTEGER NOT NULL,
  labels TEXT NOT NULL,
  ref TEXT NOT NULL,
  size INTEGER NOT NULL DEFAULT 0,
  inodes INTEGER NOT NULL DEFAULT 0,
  base TEXT NOT NULL DEFAULT '',
  layer TEXT NOT NULL DEFAULT '',
  depth INTEGER NOT NULL DEFAULT 0,
  layers TEXT NOT NULL DEFAULT '',
  chain_id TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX by_parent ON snapshots(parent, ref);
CREATE INDEX by_ref ON snapshots(ref);
CREATE INDEX by_base ON snapshots(base) WHERE base != '' AND kind != 'committed';
CREATE TABLE orders (
  snapshot INTEGER NOT NULL REFERENCES snapshots(id) ON DELETE CASCADE,
  image TEXT NOT NULL,
  manifest TEXT NOT NULL,
  told_ns INTEGER NOT NULL,
  PRIMARY KEY (snapshot, image, manifest)
) STRICT;
"""
RECORD_QUERY: Final = (
    "SELECT s.id, s.name, coalesce(p.name, ''), s.kind, s.created_ns, s.updated_ns, s.labels, s.base,"
    " s.layer, s.depth FROM snapshots s LEFT JOIN snapshots p ON p.id = s.parent"
)
"""The columns of `record_of_row`; `s` is the snapshot and `p` its parent."""

_LONGEST_LABEL: Final = 4096  # key and value together: containerd's `pkg/labels`


class Record(Struct, frozen=True):
    """A snapshot as it is kept.

    Attributes:
        id: names its directory; never used for two snapshots at once.
        info: what clients are told.
        base: the daemon's name of the mount below it, or of its own if it is lazy; "" for none.
        layer: its layer's compressed digest if it is lazy, else "".
        depth: how many committed snapshots its chain has, itself included.
    """

    id: int
    info: Info
    base: str
    layer: str
    depth: int

    @property
    def is_lazy(self) -> bool:
        """Whether its layer is not here."""
        return bool(self.layer)


class Chain(Struct, frozen=True):
    """What a snapshot stands on.

    Attributes:
        here: ids of its committed parents that have directories, top first.
        base: the daemon's name of the mount below them; "" if there is none.
        orders: how that mount can be ordered, the best last.
    """

    here: tuple[int, ...]
    base: str
    orders: tuple[ChainOrder, ...]


def record_of_row(row: tuple[int, str, str, str, int, int, str, str, str, int]) -> Record:
    """A record from a row of `RECORD_QUERY`."""
    number, name, parent, kind, created_ns, updated_ns, labels, base, layer, depth = row
    info = Info(name, parent, Kind(kind), created_ns, updated_ns, json.loads(labels))
    return Record(number, info, base, layer, depth)


def kept_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """The labels that are kept: an empty value is none (containerd's `boltutil.WriteLabels`).

    Raises:
        BadSnapshotCall: one is too long.
    """
    for key, value in labels.items():
        if len(key.encode()) + len(value.encode()) > _LONGEST_LABEL:
            raise BadSnapshotCall(f"label {key[:64]} and its value are longer than {_LONGEST_LABEL} bytes")
    return {key: value for key, value in labels.items() if value}


def narrowed(alternatives: Sequence[tuple[Selector, ...]]) -> tuple[str, tuple[str, ...]]:
    """A condition that all wanted rows meet, where an index helps: a List for one name or chainID."""
    if len(alternatives) != 1:
        return "", ()
    for selector in alternatives[0]:
        if selector.operator != "==":
            continue
        if selector.path == ("name",):
            return " WHERE s.name = ?", (selector.value,)
        if selector.path[0] == "labels" and ".".join(selector.path[1:]) == REF:
            return " WHERE s.ref = ?", (selector.value,)
    return "", ()


def open_records(path: Path) -> sqlite3.Connection:
    """The database at `path`, made if it is not there. Its calls may come from any thread, one at a time.

    Raises:
        ConfigError: the file is of another program or a later version, or cannot be written.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644))  # says more than sqlite why not
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    except (OSError, sqlite3.Error) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{path}: cannot keep snapshots there: {why}") from error
    try:
        db.execute("PRAGMA locking_mode = EXCLUSIVE")  # no shared memory: SIGBUS on a full tmpfs
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")  # fsync at each commit
        db.execute("PRAGMA wal_autocheckpoint = 256")  # pages: on a full disk there is room for so many
        db.execute("PRAGMA foreign_keys = ON")
        with transaction(db):
            _make_tables(db)
    except BaseException as error:
        db.close()
        if isinstance(error, sqlite3.Error | DiskRefused):
            raise ConfigError(f"{path}: cannot keep snapshots there: {error}") from error
        raise
    return db


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All of the block's changes or none; on disk at its end.

    Raises:
        DiskRefused: they cannot be written.
    """
    try:
        db.execute("BEGIN IMMEDIATE")
        yield
        db.execute("COMMIT")
    except sqlite3.Error as error:
        raise DiskRefused(f"the records of snapshots cannot be written: {error}") from error
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def _make_tables(db: sqlite3.Connection) -> None:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version == 0:
        for statement in filter(str.strip, _SCHEMA.split(";")):
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {_VERSION}")
    elif version != _VERSION:
        raise ConfigError(f"the snapshots were written by a later lazyfs (version {version})")
