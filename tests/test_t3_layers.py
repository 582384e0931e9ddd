"""layers: what each one adds, changes, hides and wastes."""

import pytest
from hypothesis import assume, event, given, settings
from msgspec.structs import replace

from indexer.errors import IndexerError, LimitExceeded
from indexer.merge import merge
from indexer.toc import Kind, Member
from indexer.tree import MAX_DEPTH
from lazyfs.image.inside.layer_report import LayerReport, Tally, WastedFile, created_by, report_layers
from lazyfs.oci.config import HistoryEntry, parse_config
from tests.support.images import build_image
from tests.support.tar_reading import parse
from tests.support.tars import directory, file, hardlink, opaque, symlink, tar, whiteout
from tests.support.trees import layer_stacks, tree_paths


def report(*layers: list[bytes]) -> LayerReport:
    return report_layers(parse(tar(*members)).members for members in layers)


def upper(below: list[bytes], *members: bytes):
    """What a layer does to the one below."""
    return report(below, [*members]).layers[1]


BELOW = [directory(b"d"), file(b"d/f", b"1" * 10), file(b"d/g", b"2" * 20), symlink(b"l", b"d/f")]

CASES = {
    "nothing": ([], Tally(), Tally(), Tally()),
    "a new file": ([file(b"new", b"123")], Tally(1, 3), Tally(), Tally()),
    "a file in new directories": ([file(b"x/y/new", b"123")], Tally(3, 3), Tally(), Tally()),
    "a parent as it was": ([directory(b"d"), file(b"d/new")], Tally(1), Tally(), Tally()),
    "a parent with another mode": ([directory(b"d", mode=0o700)], Tally(), Tally(1), Tally()),
    "a new version": ([file(b"d/f", b"123")], Tally(), Tally(1, 3), Tally()),
    "a whiteout": ([whiteout(b"d/f")], Tally(), Tally(), Tally(1, 10)),
    "a whiteout of a directory": ([whiteout(b"d")], Tally(), Tally(), Tally(3, 30)),
    "a whiteout of nothing": ([whiteout(b"nothing")], Tally(), Tally(), Tally()),
    "an opaque directory": ([opaque(b"d")], Tally(), Tally(), Tally(2, 30)),
    "one that fills it anew": ([opaque(b"d"), file(b"d/f", b"1")], Tally(), Tally(1, 1), Tally(1, 20)),
    "a whiteout beside what replaces": (
        [whiteout(b"d/f"), file(b"d/f", b"1")],
        Tally(),
        Tally(1, 1),
        Tally(),
    ),
    "a file for a directory": ([file(b"d", b"1")], Tally(), Tally(1, 1), Tally(2, 30)),
    "a directory for a file": ([directory(b"d/f"), file(b"d/f/x", b"1")], Tally(1, 1), Tally(1), Tally()),
    "an implied one": ([file(b"l/x", b"1")], Tally(1, 1), Tally(1), Tally()),
    "another name": ([hardlink(b"n", b"d/f")], Tally(1), Tally(), Tally()),
    "a directory made afresh": ([file(b"d"), directory(b"d")], Tally(), Tally(1), Tally(2, 30)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_layer_is_seen_against_those_below(name):
    members, added, changed, hidden = CASES[name]
    found = upper(BELOW, *members)
    assert (found.added, found.changed, found.hidden) == (added, changed, hidden)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("mark", "hidden"), [(b".wh.d", 5001), (b"d/.wh..wh..opq", 5000)])
def test_what_is_hidden_over_and_over_is_walked_once(mark, hidden):
    below = [Member(b"d/%d" % number, Kind.REGULAR) for number in range(5000)]
    marks = [Member(mark, Kind.REGULAR)] * 50_000
    assert report_layers([below, marks]).layers[1].hidden.names == hidden
    assert report_layers([below, marks + below]).layers[1].hidden.names == 0


def test_hidden_bytes_count_once_for_all_names_of_an_inode():
    below = [file(b"d/a", b"1" * 7), hardlink(b"d/b", b"d/a")]
    assert upper(below, whiteout(b"d")).hidden == Tally(3, 7)


def test_what_upper_layers_replace_or_remove_is_wasted_where_it_was_shipped():
    found = report(
        [file(b"a", b"1" * 100), file(b"b", b"2" * 30), file(b"c", b"3" * 5)],
        [file(b"a", b"4" * 60), whiteout(b"b")],
        [file(b"a", b"5" * 10)],
    )
    assert [layer.size for layer in found.layers] == [135, 60, 10]
    assert [layer.wasted for layer in found.layers] == [130, 60, 0]
    assert found.wasted_files == (WastedFile(b"a", 160, (0, 1)), WastedFile(b"b", 30, (0,)))
    assert (found.size, found.wasted, found.efficiency) == (205, 190, 1 - 190 / 205)


def test_content_that_another_name_still_shows_is_not_wasted():
    found = report([file(b"a", b"1" * 100)], [hardlink(b"b", b"a")], [whiteout(b"a")])
    assert found.wasted == 0
    assert found.layers[2].hidden == Tally(1, 100)


def test_an_image_without_content_wastes_none():
    assert report([], []).efficiency == 1


def test_paths_too_deep_for_a_tree_are_refused_before_they_cost_memory():
    member = Member(b"/".join([b"d"] * (MAX_DEPTH + 1)), Kind.REGULAR)
    with pytest.raises(LimitExceeded):
        report_layers([[member]])


@settings(max_examples=300)
@given(layer_stacks())
def test_names_come_and_go_as_in_the_trees(layers):
    """What a layer adds and hides is the difference between the trees without and with it."""
    trees = []
    try:
        for count in range(len(layers) + 1):
            root = merge(layers[:count])
            trees.append({path: node for path, node in tree_paths(root) if path})
    except IndexerError:
        event("refused")
        assume(False)
    found = report_layers(layers)
    for layer, below, tree in zip(found.layers, trees, trees[1:], strict=False):
        gone = below.keys() - tree.keys()
        assert layer.added.names == len(tree.keys() - below.keys())
        assert layer.hidden.names == len(gone)
        assert layer.hidden.size == sum({id(below[path]): below[path].size for path in gone}.values())
        assert layer.changed.names <= len(tree.keys() & below.keys()) + 1
    shown = {(node.layer, node.data_start): node.size for node in trees[-1].values() if node.size}
    contents = {
        (number, m.data_start): m.size for number, layer in enumerate(layers) for m in layer if m.size
    }
    assert found.size == sum(contents.values())
    assert found.size - found.wasted == sum(shown.values())
    assert found.wasted == sum(wasted.size for wasted in found.wasted_files)


def test_commands_are_matched_to_the_layers_they_left():
    config = parse_config(build_image([tar(), tar()]).config)
    steps = (
        HistoryEntry("", "ADD base", "", empty_layer=False),
        HistoryEntry("", "ENV A=1", "", empty_layer=True),
        HistoryEntry("", "RUN make", "", empty_layer=False),
    )
    assert created_by(replace(config, history=steps), 2) == ["ADD base", "RUN make"]
    assert created_by(replace(config, history=steps), 3) == ["", "", ""]
    assert created_by(replace(config, history=()), 1) == [""]


def test_a_file_that_becomes_a_directory_in_its_layer_changes_what_was_below():
    lower = [Member(b"b/a", Kind.REGULAR, size=1)]
    upper = [
        Member(b"b", Kind.REGULAR, size=1),
        Member(b"b", Kind.DIRECTORY, uid=1),
        Member(b"b/a", Kind.REGULAR, uid=2, size=3, data_start=1024),
    ]
    changes = report_layers([lower, upper]).layers[1]
    assert (changes.added.names, changes.changed.names, changes.hidden.names) == (0, 2, 0)
