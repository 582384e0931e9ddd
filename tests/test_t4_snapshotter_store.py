"""The records of snapshots against a model: any calls in any order, and what is kept over a restart."""

import subprocess
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from lazyfs.errors import ConfigError
from lazyfs.oci.chain import ChainOrder, chain_name
from lazyfs.snapshotter.filters import parse_filters
from lazyfs.snapshotter.labels import REF
from lazyfs.snapshotter.metastore import Metastore
from lazyfs.snapshotter.model import Kind, SnapshotError, Usage
from lazyfs.snapshotter.records import open_records
from tests.support.crash import small_disk

NAMES = st.sampled_from(["a", "b", "c", "d", "e", "f"])
PARENTS = st.just("") | NAMES
LAYERS = st.sampled_from(["sha256:1", "sha256:2"])
LABELS = st.dictionaries(st.sampled_from(["x", "y", REF]), st.sampled_from(["", "1", "2"]))


@dataclass(frozen=True)
class Known:
    """What the model knows of a snapshot; `layers` is None where the layer is here."""

    id: int
    kind: Kind
    parent: str
    labels: dict[str, str]
    layers: tuple[str, ...] | None = None
    base: str = ""
    depth: int = 0


class Model(RuleBasedStateMachine):
    """Plain dictionaries beside the database."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.path = Path(self.folder.name) / "db"
        self.store = Metastore(self.path)
        self.known: dict[str, Known] = {}
        self.last = 0

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()

    def is_parent(self, name: str) -> bool:
        return not name or (name in self.known and self.known[name].kind is Kind.COMMITTED)

    @rule(name=NAMES, parent=PARENTS, kind=st.sampled_from([Kind.ACTIVE, Kind.VIEW]), labels=LABELS)
    def create(self, name: str, parent: str, kind: Kind, labels: dict[str, str]) -> None:
        self.last += 1
        allowed = name not in self.known and self.is_parent(parent)
        with expected(allowed):
            self.store.create(self.last, kind, name, parent, labels)
        if allowed:
            below = self.known.get(parent)
            base, depth = (below.base, below.depth) if below else ("", 0)
            self.known[name] = Known(self.last, kind, parent, kept(labels), None, base, depth)

    @rule(name=NAMES, parent=PARENTS, layer=LAYERS, labels=LABELS)
    def create_lazy(self, name: str, parent: str, layer: str, labels: dict[str, str]) -> None:
        self.last += 1
        below = self.known.get(parent)
        under = () if not parent else below.layers if below else None
        allowed = name not in self.known and under is not None and self.is_parent(parent)
        order = ChainOrder("image", "", len(under or ()) + 1, layer, "chain")
        with expected(allowed):
            self.store.create_lazy(self.last, name, parent, labels, order)
        if allowed:
            layers = (*(under or ()), layer)
            self.known[name] = Known(
                self.last, Kind.COMMITTED, parent, kept(labels), layers, chain_name(layers), len(layers)
            )

    @rule(name=NAMES, key=NAMES, parent=PARENTS, labels=LABELS)
    def commit(self, name: str, key: str, parent: str, labels: dict[str, str]) -> None:
        was = self.known.get(key)
        allowed = (
            was is not None
            and was.kind is Kind.ACTIVE
            and name not in self.known
            and (parent in {"", was.parent} or (not was.parent and self.is_parent(parent)))
        )
        with expected(allowed):
            self.store.commit(name, key, parent, labels, Usage(1, 2))
        if allowed:
            assert was is not None
            if parent and not was.parent:
                below = self.known[parent]
                was = replace(was, parent=parent, base=below.base, depth=below.depth)
            del self.known[key]
            self.known[name] = replace(was, kind=Kind.COMMITTED, labels=kept(labels), depth=was.depth + 1)
            assert self.store.usage(name) == Usage(1, 2)

    @rule(name=NAMES, labels=LABELS, paths=st.sampled_from([(), ("labels",), ("labels.x",), ("parent",)]))
    def update(self, name: str, labels: dict[str, str], paths: tuple[str, ...]) -> None:
        allowed = name in self.known and paths != ("parent",)
        with expected(allowed):
            self.store.update(name, labels, paths)
        if allowed:
            was = self.known[name]
            new = labels if paths != ("labels.x",) else was.labels | {"x": labels.get("x", "")}
            self.known[name] = replace(was, labels=kept(new))

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        allowed = name in self.known and all(other.parent != name for other in self.known.values())
        with expected(allowed):
            self.store.remove(name)
        if allowed:
            del self.known[name]

    @rule()
    def open_again(self) -> None:
        self.store.close()
        self.store = Metastore(self.path)

    @invariant()
    def both_say_the_same(self) -> None:
        infos = self.store.matching([])
        assert {info.name for info in infos} == set(self.known)
        assert self.store.ids() == {known.id for known in self.known.values()}
        for info in infos:
            known, record = self.known[info.name], self.store.find(info.name)
            assert record.info == info
            assert (info.kind, info.parent, info.labels) == (known.kind, known.parent, known.labels)
            assert (record.id, record.base, record.depth) == (known.id, known.base, known.depth)
            assert record.is_lazy == (known.layers is not None)
        used = {known.base for known in self.known.values() if known.kind is not Kind.COMMITTED} - {""}
        assert self.store.bases_in_use() == sorted(used)

    @invariant()
    def narrow_filters_find_the_same_as_wide_ones(self) -> None:
        for text in ("name==a", f'labels."{REF}"==1,parent==""', f'labels."{REF}"==2'):
            wanted = parse_filters([text])
            narrow = [info.name for info in self.store.matching(wanted)]
            wide = [info.name for info in self.store.matching([*wanted, *parse_filters(['name==""'])])]
            assert narrow == wide

    @invariant()
    def chains_go_down_to_what_is_mounted(self) -> None:
        for name, known in self.known.items():
            here, parent = [], known.parent
            while parent and self.known[parent].layers is None:
                here.append(self.known[parent].id)
                parent = self.known[parent].parent
            chain = self.store.chain(self.store.find(name))
            assert chain.here == tuple(here)
            assert chain.base == (self.known[parent].base if parent else "")
            assert [order.layers for order in chain.orders] == ([self.known[parent].depth] if parent else [])


def expected(allowed: bool):
    """A block that works, or is refused."""
    return nullcontext() if allowed else pytest.raises(SnapshotError)


def kept(labels: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in labels.items() if value}


Model.TestCase.settings = settings(max_examples=25, stateful_step_count=30)
test_any_calls_in_any_order = Model.TestCase


@pytest.mark.parametrize("known", [False, True])
def test_where_nothing_can_be_written_no_records_are_kept_and_it_is_said_why(
    tmp_path: Path, known: bool
) -> None:
    with small_disk(tmp_path / "disk", 1 << 20, "tmpfs") as disk:
        if known:
            Metastore(disk / "db").close()
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(ConfigError, match="cannot keep snapshots there: Read-only file system"):
            Metastore(disk / "db")


def test_records_of_a_later_version_are_left_alone(tmp_path: Path) -> None:
    db = open_records(tmp_path / "db")
    db.execute("PRAGMA user_version = 9")
    db.close()
    with pytest.raises(ConfigError, match="later"):
        Metastore(tmp_path / "db")


def test_a_snapshot_has_a_bounded_number_of_orders(tmp_path: Path) -> None:
    store = Metastore(tmp_path / "db")
    store.create_lazy(1, "lazy", "", {}, ChainOrder("image 0", "", 1, "sha256:1", "chain"))
    for number in range(1, 40):
        store.also_ordered("lazy", ChainOrder(f"image {number}", "", 1, "sha256:1", "chain"))
    record = store.create(2, Kind.ACTIVE, "container", "lazy", {})
    assert [order.image for order in store.chain(record).orders] == [f"image {n}" for n in range(24, 40)]
    store.close()
