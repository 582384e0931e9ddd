"""One layer alone: what it shows in every case, and that overlayfs makes the merged tree of all of them."""

import io
import re

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from indexer.compile import alone_key, compile_alone, image_key
from indexer.difference import OPAQUE_XATTR, layers_alone
from indexer.erofs.read import MetadataImage
from indexer.errors import FormatError, LimitExceeded
from indexer.merge import merge
from indexer.toc import Kind, Member
from indexer.toc_codec import decode_head, encode_toc
from indexer.tree import MAX_DEPTH, Node
from tests.support import layers, tars
from tests.support.erofs_images import written
from tests.support.members import directory, file, hardlink, opaque, symlink, whiteout
from tests.support.overlay import is_whiteout, overlaid
from tests.support.trees import Shown, layer_stacks, shown_by_tree, tree_paths

X = (b"user.x", b"1")


def alone(*stack: list[Member]) -> dict[bytes, Node]:
    *_, top = layers_alone(stack or [[]])
    return dict(tree_paths(top))


def names(*stack: list[Member]) -> set[bytes]:
    return set(alone(*stack)) - {b""}


def hidden(tree: dict[bytes, Node]) -> set[bytes]:
    return {path for path, node in tree.items() if is_whiteout(node)}


def marked(tree: dict[bytes, Node]) -> set[bytes]:
    return {path for path, node in tree.items() if OPAQUE_XATTR in node.xattrs}


# What is gone.


def test_a_name_that_is_gone_is_a_device_0_0():
    tree = alone([file(b"a"), file(b"b")], [whiteout(b"a")])
    assert set(tree) == {b"", b"a"}
    node = tree[b"a"]
    assert (node.kind, node.device, node.mode, node.uid) == (Kind.CHARACTER, (0, 0), 0, 0)


def test_a_directory_that_is_gone_is_one_whiteout():
    tree = alone([file(b"d/e/x"), file(b"d/y")], [whiteout(b"d")])
    assert set(tree) == hidden(tree) | {b""} == {b"", b"d"}


def test_whiteouts_are_names_of_one_inode():
    tree = alone([file(b"a"), file(b"b/c"), file(b"b/d")], [whiteout(b"a"), whiteout(b"b/c")])
    assert hidden(tree) == {b"a", b"b/c"}
    assert tree[b"a"] is tree[b"b/c"]
    assert tree[b"a"].nlink == 2


def test_what_a_layer_hides_it_hides_whatever_is_below_where_that_has_its_directory():
    tree = alone(
        [file(b"a"), file(b"d/x")], [whiteout(b"c"), opaque(b"e"), whiteout(b"d/y"), whiteout(b"g/h")]
    )
    assert set(tree) - {b""} == {b"c", b"d", b"d/y"}
    assert hidden(tree) == {b"c", b"d/y"}
    assert marked(tree) == set()


def test_a_whiteout_of_what_a_layer_between_took_away_stays():
    assert names([file(b"a")], [whiteout(b"a")], [whiteout(b"a")]) == {b"a"}


def test_a_directory_beside_its_own_whiteout_is_opaque_whatever_is_below():
    assert marked(alone([file(b"a")], [whiteout(b"d"), file(b"d/x"), opaque(b"e"), file(b"e/x")])) == {
        b"d",
        b"e",
    }


@pytest.mark.parametrize("path", [b".wh..wh.aufs", b".wh..wh.plnk", b".wh..wh.plnk/1.2", b"d/.wh..wh.orph"])
def test_metadata_of_aufs_hides_nothing(path):
    assert names([file(b"d/x")], [Member(path, Kind.REGULAR)]) == set()


def test_no_whiteout_stands_in_a_directory_that_overlayfs_lists_as_it_is():
    tree = alone([file(b"d/old")], [opaque(b"d"), whiteout(b"d/y"), file(b"new/x"), whiteout(b"new/y")])
    assert hidden(tree) == set()
    assert marked(tree) == {b"d"}


def test_an_opaque_mark_makes_a_directory_opaque_that_keeps_its_attributes():
    lower = [directory(b"d", uid=3), file(b"d/old/deep"), file(b"d/same"), file(b"d/z")]
    tree = alone(lower, [opaque(b"d"), file(b"d/same", 2), file(b"d/new")])
    assert set(tree) == {b"", b"d", b"d/same", b"d/new"}
    assert marked(tree) == {b"d"}
    assert tree[b"d/same"].size == 2
    assert tree[b"d"].uid == 3


def test_what_the_roots_opaque_mark_hides_is_a_whiteout_each():
    tree = alone(
        [file(b"old/deep"), file(b"same"), file(b"z")], [opaque(b""), file(b"same", 2), file(b"new")]
    )
    assert marked(tree) == set()
    assert hidden(tree) == {b"old", b"z"}
    assert tree[b"same"].size == 2


# What stands in the place of something else.


def test_a_file_in_the_place_of_its_own_whiteout_needs_none():
    tree = alone([file(b"a")], [whiteout(b"a"), file(b"a", 2)])
    assert set(tree) == {b"", b"a"}
    assert tree[b"a"].size == 2


@pytest.mark.parametrize("given_again", [[directory(b"d", uid=4)], [file(b"d/new"), directory(b"d", uid=4)]])
def test_a_directory_in_the_place_of_its_own_whiteout_is_opaque(given_again):
    tree = alone([directory(b"d", xattrs=(X,)), file(b"d/old")], [whiteout(b"d"), *given_again])
    assert tree[b"d"].xattrs == (OPAQUE_XATTR,)
    assert tree[b"d"].uid == 4
    assert hidden(tree) == set()


def test_a_file_over_a_directory_is_the_file():
    assert names([file(b"d/x/y")], [file(b"d")]) == {b"d"}


@pytest.mark.parametrize("lower", [file(b"d"), symlink(b"d"), Member(b"d", Kind.CHARACTER)])
@pytest.mark.parametrize("upper", [[directory(b"d")], [file(b"d/x")]])
def test_a_directory_over_anything_else_is_opaque(lower, upper):
    assert marked(alone([lower], upper)) == {b"d"}


def test_a_directory_that_was_a_file_within_the_layer_is_another_one():
    tree = alone([file(b"d/old")], [file(b"d"), directory(b"d", xattrs=(X, (b"a", b""))), file(b"d/x")])
    assert tree[b"d"].xattrs == ((b"a", b""), OPAQUE_XATTR, X)
    assert set(tree) == {b"", b"d", b"d/x"}


def test_a_directory_over_nothing_is_not_opaque():
    lower = [file(b"d/x"), directory(b"e")]
    assert marked(alone(lower, [whiteout(b"e")], [directory(b"e"), file(b"d/new/x"), file(b"n/x")])) == set()


def test_a_replaced_directory_has_all_that_is_in_it():
    tree = alone([file(b"d/s/x")], [whiteout(b"d"), file(b"d/s/x"), hardlink(b"d/h", b"d/s/x")])
    assert set(tree) == {b"", b"d", b"d/s", b"d/s/x", b"d/h"}


# What is passed through.


def test_what_is_as_before_is_not_shown():
    assert names([file(b"a"), file(b"d/x"), file(b"e/y")], [file(b"e/z")]) == {b"e", b"e/z"}


def test_implied_directories_have_the_attributes_of_lower_ones():
    lower = [directory(b"d", uid=3, mode=0o2750, mtime_ns=5, xattrs=(X,)), directory(b"d/e", gid=4)]
    tree = alone(lower, [], [file(b"d/e/n/x")])
    assert set(tree) == {b"", b"d", b"d/e", b"d/e/n", b"d/e/n/x"}
    node = tree[b"d"]
    assert (node.uid, node.mode, node.mtime_ns, node.xattrs) == (3, 0o2750, 5, (X,))
    assert (tree[b"d/e"].gid, tree[b"d/e/n"].mode) == (4, 0o755)
    assert [tree[path].nlink for path in (b"", b"d", b"d/e", b"d/e/n")] == [3, 3, 3, 2]


@pytest.mark.parametrize(
    "change", [{"uid": 1}, {"mode": 0o711}, {"gid": 1}, {"mtime_ns": 1}, {"xattrs": (X,)}]
)
def test_a_directory_with_other_attributes_is_shown_without_what_is_in_it(change):
    tree = alone([directory(b"d"), file(b"d/x"), directory(b"d/e")], [directory(b"d", **change)])
    assert set(tree) == {b"", b"d"}
    assert (tree[b"d"].nlink, tree[b"d"].children) == (2, {})
    assert marked(tree) == set()


def test_what_layers_below_changed_is_not_shown():
    lower = [[directory(b"d"), file(b"d/x")], [directory(b"d", uid=1), hardlink(b"y", b"d/x", uid=1)]]
    assert names(*lower, [file(b"z")]) == {b"z"}


def test_a_directory_that_is_described_as_it_was_is_shown_for_others_may_be_below():
    lower = [directory(b"d", xattrs=(X,)), file(b"d/x")]
    assert names(lower, [directory(b"d"), directory(b"d", xattrs=(X,))]) == {b"d"}


def test_the_root_has_its_merged_attributes_always():
    lower = [directory(b"", uid=4, xattrs=(X,)), file(b"a")]
    assert (alone(lower, [])[b""].uid, alone(lower, [])[b""].xattrs) == (4, (X,))
    assert (alone(lower, [directory(b"", uid=5)])[b""].uid, names(lower, [directory(b"", uid=5)])) == (
        5,
        set(),
    )


# Hard links.


def test_a_hard_link_to_a_lower_file_shows_all_names_of_it_with_that_layers_content():
    lower = [file(b"d/a", 5, data_start=512, mode=0o600)]
    tree = alone([], lower, [hardlink(b"b", b"d/a", mode=0o600)])
    assert set(tree) == {b"", b"b", b"d", b"d/a"}
    assert tree[b"b"] is tree[b"d/a"]
    assert (tree[b"b"].layer, tree[b"b"].data_start, tree[b"b"].size, tree[b"b"].nlink) == (1, 512, 5, 2)


def test_all_names_of_an_inode_that_a_hard_link_changed_are_shown():
    lower = [file(b"a"), hardlink(b"d/b", b"a"), file(b"d/c"), hardlink(b"e", b"a"), file(b"f")]
    tree = alone(lower, [whiteout(b"e"), hardlink(b"g", b"d/b", uid=7)])
    assert set(tree) == {b"", b"a", b"d", b"d/b", b"e", b"g"}
    assert tree[b"a"] is tree[b"d/b"] is tree[b"g"]
    assert (tree[b"a"].uid, tree[b"a"].nlink, hidden(tree)) == (7, 3, {b"e"})


def test_a_change_stays_when_the_hard_link_that_made_it_does_not():
    tree = alone([file(b"a")], [hardlink(b"b", b"a", xattrs=(X,)), file(b"b", 9)])
    assert (tree[b"a"].xattrs, tree[b"b"].size) == ((X,), 9)


def test_a_hard_link_that_comes_before_the_other_of_its_layer_changes_the_lower_file_too():
    tree = alone([file(b"a")], [hardlink(b"c", b"b", uid=1), hardlink(b"b", b"a", uid=2)])
    assert set(tree) == {b"", b"a", b"b", b"c"}
    assert {tree[path].uid for path in (b"a", b"b", b"c")} == {1}
    assert tree[b"a"].nlink == 3


def test_hard_links_within_the_layer_are_one_inode():
    tree = alone([file(b"z")], [file(b"a"), hardlink(b"d/b", b"a")])
    assert tree[b"a"] is tree[b"d/b"]
    assert tree[b"a"].nlink == 2


# Layers and limits.


@pytest.mark.parametrize("lower", [[], [[]], [[file(b"d/a")]], [[file(b"d/a")], [whiteout(b"d")]]])
def test_an_empty_layer_is_an_empty_root(lower):
    assert names(*lower, []) == set()
    assert alone(*lower, [])[b""].nlink == 2


def test_no_layers_have_no_differences():
    assert list(layers_alone([])) == []


def test_layers_may_come_one_by_one_and_each_tree_is_of_its_own():
    linking = [hardlink(b"c", b"b", uid=4), whiteout(b"d/a")]
    stack = [[file(b"d/a"), file(b"b")], [directory(b"d", uid=3)], linking]
    first, second, third = [dict(tree_paths(root)) for root in layers_alone(iter(stack))]
    assert set(first) == {b"", b"d", b"d/a", b"b"}
    assert set(second) == {b"", b"d"}
    assert set(third) == set(first) | {b"c"}
    assert [tree[b"d"].uid for tree in (first, second, third)] == [0, 3, 3]
    assert [(tree[b"b"].uid, tree[b"b"].nlink) for tree in (first, third)] == [(0, 1), (4, 2)]


def test_a_device_0_0_of_the_image_stays_one():
    tree = alone([file(b"a")], [Member(b"b", Kind.CHARACTER, uid=3)])
    assert (tree[b"b"].device, tree[b"b"].uid) == ((0, 0), 3)


def test_changes_may_lie_as_deep_as_a_tree_may_be():
    deepest = b"/".join([b"d"] * MAX_DEPTH)
    assert len(names([file(deepest)], [whiteout(deepest)])) == MAX_DEPTH


def test_entries_are_counted_over_all_layers():
    stack = [[file(b"a/b/x"), file(b"a/b/y")], [file(b"c")]]
    assert len(list(layers_alone(stack, max_entries=5))) == 2
    with pytest.raises(LimitExceeded):
        list(layers_alone(stack, max_entries=4))


# All layers of a stack.


def looks(shown: Shown) -> Shown:
    """What overlayfs shows of it, but for its link count and other names."""
    xattrs = tuple(pair for pair in shown.xattrs if pair != OPAQUE_XATTR)
    return shown._replace(xattrs=xattrs, nlink=0, names=())


@settings(max_examples=500)
@given(layer_stacks())
def test_overlayfs_over_the_differences_shows_the_merged_tree(stack):
    try:
        merged = merge(stack)
    except FormatError as error:
        event("refused")
        with pytest.raises(FormatError, match=re.escape(str(error))):
            list(layers_alone(stack or [[]]))
        return
    event("merged")
    differences = list(layers_alone(stack or [[]]))
    shown = [shown_by_tree(difference) for difference in differences]
    seen = overlaid(differences)
    wanted = {path: node for path, node in tree_paths(merged) if not is_whiteout(node)}
    asked = {path: looks(what) for path, what in shown_by_tree(merged).items() if path in wanted}
    assert {path: looks(shown[number][path]) for path, (number, _) in seen.items()} == asked
    inodes = {(id(node), id(wanted[path])) for path, (_, node) in seen.items()}
    assert len(inodes) == len({node for node, _ in inodes}) == len({node for _, node in inodes})
    for names_of in shown:
        assert all(what.nlink == len(what.names) for what in names_of.values() if what.kind != Kind.DIRECTORY)


@settings(max_examples=200)
@given(layer_stacks())
def test_a_layer_of_nothing_changes_nothing_and_whiteouts_stand_where_overlayfs_hides_them(stack):
    try:
        merged = shown_by_tree(merge(stack))
    except FormatError:
        return
    below = dict(tree_paths(merge(stack[:-1])))
    tree = alone(*stack)
    for path, node in tree.items():
        parent = path.rpartition(b"/")[0]
        if is_whiteout(node) and path not in merged:
            assert below[parent].children is not None
            assert OPAQUE_XATTR not in tree[parent].xattrs
    assert names(*stack, []) == set()


@given(st.lists(st.sampled_from([b"a", b"a/b", b"b/a", b"b"]), unique=True))
def test_the_lowest_layer_alone_is_the_merged_tree(paths):
    members = [directory(path, uid=number) for number, path in enumerate(paths)]
    (difference,) = layers_alone([members])
    assert written(difference) == written(merge([members]))


# As metadata images.


@pytest.mark.parametrize(
    ("members", "devices"),
    [
        (tars.file(b"c", b"x"), [2]),
        (tars.hardlink(b"c", b"b"), [1]),
        (tars.file(b"c", b"x") + tars.hardlink(b"d", b"a"), [0, 2]),
        (tars.whiteout(b"a") + tars.file(b"empty"), []),
    ],
)
def test_a_compiled_layer_alone_has_those_layers_as_devices_that_hold_its_contents(members, devices):
    lower = [tars.tar(tars.file(b"a", b"of a")), tars.tar(tars.file(b"b", b"of b"))]
    heads = [decode_head(encode_toc(layers.build(tar).toc)) for tar in (*lower, tars.tar(members))]
    out = io.BytesIO()
    *_, write = compile_alone(heads)
    write(out)
    image = MetadataImage(out.getvalue())
    digests = [heads[number].header.layer_digest for number in devices]
    assert [device.tag.decode() for device in image.devices] == [digest[7:] for digest in digests]
    extents = [image.extent(inode.nid) for _, inode in image.walk()]
    assert {extent[0] for extent in extents if extent} == set(range(len(devices)))


def test_a_layer_that_makes_no_tree_with_those_below_makes_none_alone():
    lower, upper = tars.tar(tars.file(b"a")), tars.tar(tars.hardlink(b"b", b"a"), tars.whiteout(b"a"))
    heads = [decode_head(encode_toc(layers.build(tar).toc)) for tar in (lower, upper)]
    with pytest.raises(FormatError, match="to nothing"):
        list(compile_alone(heads))


def test_a_layer_alone_has_a_key_of_its_own():
    digests = ["sha256:" + "1" * 64, "sha256:" + "2" * 64]
    whole = "9fb55e8207da9d08372ca717a4bd30313059abf6ed06e5e0510a95414b653873"
    keys = [image_key(digests), alone_key(digests), alone_key(digests[:1])]
    assert keys[0] == whole
    assert len(set(keys)) == 3
