"""The records of all snapshots: what is kept of each, found and changed.

A snapshot is `lazy` if its layer is not here. Its `base` is the name of the daemon's mount that shows the
chain up to it; snapshots above it have the same base, until another lazy one. While an active snapshot or a
view has a base, that mount is in use; the intermediate layers of a chain are in use by nobody.

Calls must not overlap; each takes the caller's thread.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from lazyfs.oci.chain import ChainOrder, chain_name
from lazyfs.snapshotter.filters import Selector, any_of
from lazyfs.snapshotter.labels import REF
from lazyfs.snapshotter.model import (
    BadSnapshotCall,
    DiskRefused,
    Info,
    Kind,
    NoSnapshot,
    SnapshotExists,
    SnapshotInUse,
    Usage,
)
from lazyfs.snapshotter.records import (
    RECORD_QUERY,
    Chain,
    Record,
    kept_labels,
    narrowed,
    open_records,
    record_of_row,
    transaction,
)
from lazyfs.snapshotter.reserve import Reserve

_MOST_ORDERS: Final = 16  # kept per snapshot: names of images whose chains begin alike


class Metastore:
    """The records; one process at a time.

    Args:
        path: the database, made if it is not there; beside it, room is held for removals.

    Raises:
        ConfigError: the file is of another program or a later version.
    """

    def __init__(self, path: Path) -> None:
        self._db = open_records(path)
        self._reserve = Reserve(path.with_suffix(".reserve"))

    def close(self) -> None:
        """Give the file back."""
        self._db.close()

    # Reading

    def find(self, name: str) -> Record:
        """A snapshot by its name.

        Raises:
            NoSnapshot: there is none.
        """
        row = self._db.execute(RECORD_QUERY + " WHERE s.name = ?", (name,)).fetchone()
        if row is None:
            raise NoSnapshot(f"snapshot {name} does not exist")
        return record_of_row(row)

    def name(self, number: int) -> str:
        """The name of the snapshot with an id.

        Raises:
            NoSnapshot: there is none.
        """
        row = self._db.execute("SELECT name FROM snapshots WHERE id = ?", (number,)).fetchone()
        if row is None:
            raise NoSnapshot(f"snapshot {number} does not exist")
        return str(row[0])

    def usage(self, name: str) -> Usage:
        """What was measured when the snapshot was committed; nothing for others and lazy ones.

        Raises:
            NoSnapshot: there is none.
        """
        row = self._db.execute("SELECT size, inodes FROM snapshots WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise NoSnapshot(f"snapshot {name} does not exist")
        return Usage(*row)

    def matching(self, alternatives: Sequence[tuple[Selector, ...]]) -> list[Info]:
        """All snapshots that meet one of the alternatives, parents before children, lazy ones first.

        containerd takes the first snapshot that it finds for a chainID and a parent: a lazy one keeps a chain
        lazy.
        """
        condition, values = narrowed(alternatives)
        rows = self._db.execute(f"{RECORD_QUERY}{condition} ORDER BY s.layer = '', s.id", values)
        wanted = any_of(alternatives)
        return [info for info in (record_of_row(row).info for row in rows) if wanted(info)]

    def chain(self, record: Record) -> Chain:
        """What an active snapshot or a view stands on."""
        here: list[int] = []
        parent = record.info.parent
        while parent:
            above = self.find(parent)
            if above.is_lazy:
                return Chain(tuple(here), above.base, self._orders(above))
            here.append(above.id)
            parent = above.info.parent
        return Chain(tuple(here), "", ())

    def lazy(self, ref: str, parent: str) -> Record | None:
        """The lazy snapshot for a chainID on a parent; there is at most one."""
        row = self._db.execute(
            RECORD_QUERY + " WHERE s.ref = ? AND s.layer != '' AND coalesce(p.name, '') = ?", (ref, parent)
        ).fetchone()
        return None if row is None else record_of_row(row)

    def in_use(self, base: str) -> bool:
        """Whether an active snapshot or a view stands on this mount."""
        found = self._db.execute(
            "SELECT 1 FROM snapshots WHERE base = ? AND base != '' AND kind != 'committed' LIMIT 1", (base,)
        )
        return found.fetchone() is not None

    def bases_in_use(self) -> list[str]:
        """The names of all mounts that active snapshots and views stand on."""
        rows = self._db.execute(
            "SELECT DISTINCT base FROM snapshots WHERE base != '' AND kind != 'committed' ORDER BY base"
        )
        return [base for (base,) in rows]

    def kinds(self) -> dict[tuple[str, bool], int]:
        """How many snapshots there are of each kind, lazy and not."""
        rows = self._db.execute("SELECT kind, layer != '', count(*) FROM snapshots GROUP BY 1, 2")
        return {(kind, bool(lazy)): count for kind, lazy, count in rows}

    def ids(self) -> set[int]:
        """The ids of all snapshots."""
        return {number for (number,) in self._db.execute("SELECT id FROM snapshots")}

    # Writing

    def create(self, number: int, kind: Kind, name: str, parent: str, labels: Mapping[str, str]) -> Record:
        """A new active snapshot or view.

        Raises:
            SnapshotExists: the name is taken.
            NoSnapshot: there is no such parent.
            BadSnapshotCall: the parent is not committed, or a name or label cannot be.
            DiskRefused: it cannot be written.
        """
        self._reserve.fill()
        with transaction(self._db):
            below = self._parent(parent)
            self._insert(number, kind, name, below, labels)
            if below is not None:
                self._db.execute(
                    "UPDATE snapshots SET base = ?, depth = ? WHERE id = ?", (below.base, below.depth, number)
                )
        return self.find(name)

    def create_lazy(
        self, number: int, name: str, parent: str, labels: Mapping[str, str], order: ChainOrder
    ) -> None:
        """A new committed snapshot whose layer is not here.

        Raises:
            SnapshotExists: the name is taken.
            NoSnapshot: there is no such parent.
            BadSnapshotCall: the parent is not lazy, or a name or label cannot be.
        """
        with transaction(self._db):
            below = self._parent(parent)
            if below is not None and not below.is_lazy:
                raise BadSnapshotCall(f"{parent} is not lazy, so nothing lazy can stand on it")
            layers = [*(self._layers(below.id) if below else []), order.layer]
            self._insert(number, Kind.COMMITTED, name, below, labels)
            self._db.execute(
                "UPDATE snapshots SET base = ?, layer = ?, depth = ?, layers = ?, chain_id = ? WHERE id = ?",
                (chain_name(layers), order.layer, len(layers), "\n".join(layers), order.chain_id, number),
            )
            self._remember(number, order)

    def also_ordered(self, name: str, order: ChainOrder) -> None:
        """Remember another image with the same layers: its registry may be there when one is not."""
        with transaction(self._db):
            self._remember(self.find(name).id, order)

    def commit(self, name: str, key: str, parent: str, labels: Mapping[str, str], usage: Usage) -> None:
        """Make an active snapshot a committed one. Its labels are these alone.

        Args:
            name: its new name.
            key: its name so far.
            parent: what it is put on, if it has no parent; else "" or its parent.
            labels: the new labels.
            usage: what its directory takes.

        Raises:
            SnapshotExists: the new name is taken.
            NoSnapshot: there is no such key or parent.
            SnapshotInUse: it is not active, or the parent is not committed.
            BadSnapshotCall: it has another parent, or a name or label cannot be.
        """
        with transaction(self._db):
            self._check_free(name)
            record = self.find(key)
            if record.info.kind is not Kind.ACTIVE:
                raise SnapshotInUse(f"snapshot {key} is not active but {record.info.kind.value}")
            if parent not in {"", record.info.parent}:
                if record.info.parent:
                    raise BadSnapshotCall(f"snapshot {key} stands on {record.info.parent}, not on {parent}")
                self._rebase(record, parent)
            now = time.time_ns()
            kept = kept_labels(labels)
            self._db.execute(
                "UPDATE snapshots SET name = ?, kind = 'committed', labels = ?, ref = ?, created_ns = ?,"
                " updated_ns = ?, size = ?, inodes = ?, depth = depth + 1 WHERE id = ?",
                (name, json.dumps(kept), kept.get(REF, ""), now, now, usage.size, usage.inodes, record.id),
            )

    def update(self, name: str, labels: Mapping[str, str], paths: Sequence[str]) -> Info:
        """Change labels.

        Args:
            name: the snapshot's.
            labels: the new values.
            paths: "labels" replaces all, "labels.KEY" sets one, or removes it if it has no value; none is
                all.

        Raises:
            NoSnapshot: there is none of that name.
            BadSnapshotCall: a path names something else.
        """
        with transaction(self._db):
            kept = dict(self.find(name).info.labels)
            for path in paths or ("labels",):
                if path.startswith("labels."):
                    kept[path.removeprefix("labels.")] = labels.get(path.removeprefix("labels."), "")
                elif path == "labels":
                    kept = dict(labels)
                else:
                    raise BadSnapshotCall(f"{path!r} of a snapshot cannot be changed")
            kept = kept_labels(kept)
            self._db.execute(
                "UPDATE snapshots SET labels = ?, ref = ?, updated_ns = ? WHERE name = ?",
                (json.dumps(kept), kept.get(REF, ""), time.time_ns(), name),
            )
        return self.find(name).info

    def remove(self, name: str) -> Record:
        """Forget a snapshot, on a full disk too; returns what it was.

        Raises:
            NoSnapshot: there is none.
            SnapshotInUse: others stand on it.
            DiskRefused: it cannot be written, whatever is given up for it.
        """
        self._reserve.fill()
        while True:
            try:
                return self._removed(name)
            except DiskRefused:
                if not self._reserve.give():
                    raise

    # Parts

    def _removed(self, name: str) -> Record:
        with transaction(self._db):
            record = self.find(name)
            child = self._db.execute("SELECT name FROM snapshots WHERE parent = ?", (record.id,)).fetchone()
            if child is not None:
                raise SnapshotInUse(f"cannot remove snapshot {name}: {child[0]} stands on it")
            self._db.execute("DELETE FROM snapshots WHERE id = ?", (record.id,))
        return record

    def _parent(self, name: str) -> Record | None:
        if not name:
            return None
        record = self.find(name)
        if record.info.kind is not Kind.COMMITTED:
            raise BadSnapshotCall(f"parent {name} is not committed but {record.info.kind.value}")
        return record

    def _check_free(self, name: str) -> None:
        if not name or "\0" in name:
            raise BadSnapshotCall(f"a snapshot cannot have the name {name!r}")
        if self._db.execute("SELECT 1 FROM snapshots WHERE name = ?", (name,)).fetchone():
            raise SnapshotExists(f"snapshot {name} already exists")

    def _insert(
        self, number: int, kind: Kind, name: str, below: Record | None, labels: Mapping[str, str]
    ) -> None:
        self._check_free(name)
        now = time.time_ns()
        kept = kept_labels(labels)
        self._db.execute(
            "INSERT INTO snapshots (id, name, parent, kind, created_ns, updated_ns, labels, ref)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                number,
                name,
                below.id if below else None,
                kind.value,
                now,
                now,
                json.dumps(kept),
                kept.get(REF, ""),
            ),
        )

    def _rebase(self, record: Record, parent: str) -> None:
        below = self.find(parent)
        if below.info.kind is not Kind.COMMITTED:
            raise SnapshotInUse(f"parent {parent} is not committed but {below.info.kind.value}")
        self._db.execute(
            "UPDATE snapshots SET parent = ?, base = ?, depth = ? WHERE id = ?",
            (below.id, below.base, below.depth, record.id),
        )

    def _layers(self, number: int) -> list[str]:
        (layers,) = self._db.execute("SELECT layers FROM snapshots WHERE id = ?", (number,)).fetchone()
        return str(layers).split("\n")

    def _remember(self, number: int, order: ChainOrder) -> None:
        self._db.execute(
            "INSERT INTO orders VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET told_ns = excluded.told_ns",
            (number, order.image, order.manifest, time.time_ns()),
        )
        self._db.execute(
            "DELETE FROM orders WHERE snapshot = ?1 AND rowid NOT IN"
            " (SELECT rowid FROM orders WHERE snapshot = ?1 ORDER BY told_ns DESC LIMIT ?2)",
            (number, _MOST_ORDERS),
        )

    def _orders(self, record: Record) -> tuple[ChainOrder, ...]:
        rows = self._db.execute(
            "SELECT image, manifest, chain_id FROM orders JOIN snapshots ON id = snapshot WHERE snapshot = ?"
            " ORDER BY told_ns",
            (record.id,),
        )
        return tuple(
            ChainOrder(image, manifest, record.depth, record.layer, chain_id)
            for image, manifest, chain_id in rows
        )
