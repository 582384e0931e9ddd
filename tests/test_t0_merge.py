"""Merging layers: the rules one by one, then random stacks against an applier with another algorithm."""

import pytest
from hypothesis import event, given, settings

from indexer.errors import FormatError, LimitExceeded
from indexer.merge import merge
from indexer.tar.pax import MAX_XATTRS
from indexer.toc import Kind, Member
from indexer.tree import MAX_DEPTH, Node
from tests.support.members import directory, file, hardlink, opaque, symlink, whiteout
from tests.support.trees import Refused, applied, layer_stacks, shown_by_tree, tree_paths


def merged(*layers: list[Member]) -> dict[bytes, Node]:
    return dict(tree_paths(merge(layers)))


def names(*layers: list[Member]) -> set[bytes]:
    return set(merged(*layers)) - {b""}


# Whiteouts.


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind != Kind.HARDLINK])
def test_a_whiteout_of_any_type_hides_and_is_invisible(kind):
    assert names([file(b"a"), file(b"b")], [Member(b".wh.a", kind)]) == {b"b"}


def test_a_whiteout_shipped_as_hard_link_needs_no_target():
    assert names([file(b"a")], [hardlink(b".wh.a", b".wh..wh.aufs")]) == set()


def test_a_whiteout_hides_a_whole_lower_directory():
    assert names([file(b"d/e/f"), file(b"g")], [whiteout(b"d")]) == {b"g"}


@pytest.mark.parametrize("reverse", [False, True])
def test_a_whiteout_hides_only_lower_layers_wherever_it_stands(reverse):
    upper = [whiteout(b"a"), file(b"a", 2)]
    tree = merged([file(b"a")], upper[::-1] if reverse else upper)
    assert tree[b"a"].size == 2


@pytest.mark.parametrize("reverse", [False, True])
def test_an_opaque_directory_hides_lower_children_wherever_its_mark_stands(reverse):
    upper = [opaque(b"d"), directory(b"d"), file(b"d/new")]
    lower = [file(b"d/old/deep"), file(b"d/old2")]
    assert names(lower, upper[::-1] if reverse else upper) == {b"d", b"d/new"}


def test_an_opaque_mark_keeps_the_directory_and_its_attributes():
    tree = merged([directory(b"d", uid=7), file(b"d/x")], [opaque(b"d")])
    assert set(tree) == {b"", b"d"}
    assert tree[b"d"].uid == 7


def test_an_opaque_root_hides_all_lower_layers():
    assert names([file(b"a"), file(b"d/b")], [opaque(b""), file(b"c")]) == {b"c"}


def test_a_whited_out_directory_that_is_given_again_is_opaque():
    assert names([file(b"d/old")], [whiteout(b"d"), directory(b"d"), file(b"d/new")]) == {b"d", b"d/new"}


def test_an_implicit_directory_over_its_whiteout_inherits_nothing():
    tree = merged([directory(b"d", uid=7), file(b"d/old")], [whiteout(b"d"), file(b"d/new")])
    assert set(tree) == {b"", b"d", b"d/new"}
    assert (tree[b"d"].mode, tree[b"d"].uid) == (0o755, 0)


def test_whiteouts_in_the_first_layer_have_no_effect():
    assert names([whiteout(b"a"), file(b"a"), opaque(b"d"), file(b"d/x")]) == {b"a", b"d", b"d/x"}


@pytest.mark.parametrize("member", [whiteout(b"d/x"), opaque(b"d")])
def test_a_whiteout_implies_no_directory(member):
    assert names([member]) == set()
    assert names([file(b"d")], [member]) == {b"d"}
    assert names([file(b"d/x")], [member, whiteout(b"d")]) == set()


def test_a_whiteout_of_a_deleted_layer_does_not_reach_upper_layers():
    assert names([file(b"a")], [whiteout(b"a")], [file(b"a")]) == {b"a"}


def test_a_whiteout_follows_no_symlink():
    assert names([file(b"d/x"), symlink(b"s", b"d")], [whiteout(b"s/x")]) == {b"d", b"d/x", b"s"}


@pytest.mark.parametrize(
    "path", [b".wh..wh.plnk", b".wh..wh.plnk/1.2", b".wh..wh.aufs", b"d/.wh..wh.orph/x/y", b".wh..wh."]
)
@pytest.mark.parametrize("kind", [Kind.REGULAR, Kind.DIRECTORY])
def test_metadata_of_aufs_is_ignored(path, kind):
    assert names([file(b"d/x")], [Member(path, kind)]) == {b"d", b"d/x"}


@pytest.mark.parametrize("path", [b".wh.", b".wh..", b".wh...", b"d/.wh.", b"d/.wh..", b".wh.d/x"])
def test_a_whiteout_that_names_nothing_is_refused(path):
    with pytest.raises(FormatError):
        merge([[Member(path, Kind.REGULAR)]])


@pytest.mark.parametrize("path", [b"x.wh.y", b"d.wh./x", b".whx", b"a.wh."])
def test_only_the_front_of_a_name_makes_a_whiteout(path):
    assert path in names([file(path)])


# Replacing.


def test_a_directory_over_a_directory_keeps_children_and_replaces_attributes():
    lower = [directory(b"d", uid=1, mtime_ns=5, xattrs=((b"user.a", b"1"),)), file(b"d/x")]
    tree = merged(lower, [directory(b"d", mode=0o1711, gid=2, xattrs=((b"user.b", b"2"),))])
    node = tree[b"d"]
    assert b"d/x" in tree
    assert (node.mode, node.uid, node.gid, node.mtime_ns) == (0o1711, 0, 2, 0)
    assert node.xattrs == ((b"user.b", b"2"),)


@pytest.mark.parametrize("upper", [file(b"d"), symlink(b"d"), Member(b"d", Kind.FIFO)])
def test_anything_else_over_a_directory_removes_what_was_in_it(upper):
    assert names([file(b"d/x/y")], [upper]) == {b"d"}
    assert names([file(b"d/x/y"), upper]) == {b"d"}


def test_a_directory_over_a_file_replaces_it():
    assert merged([file(b"d")], [directory(b"d"), file(b"d/x")])[b"d"].kind == Kind.DIRECTORY


def test_a_directory_made_anew_in_one_layer_does_not_get_its_children_back():
    assert names([file(b"d/old")], [file(b"d/one"), file(b"d"), directory(b"d"), file(b"d/two")]) == {
        b"d",
        b"d/two",
    }


def test_of_a_path_twice_the_later_wins():
    tree = merged([file(b"a", 1), file(b"a", 2, data_start=512)])
    assert (tree[b"a"].size, tree[b"a"].data_start) == (2, 512)


def test_older_hard_links_keep_what_a_later_duplicate_replaces():
    tree = merged([file(b"a", 1), hardlink(b"b", b"a"), file(b"a", 2)])
    assert (tree[b"a"].size, tree[b"b"].size) == (2, 1)
    assert (tree[b"a"].nlink, tree[b"b"].nlink) == (1, 1)


def test_replacing_one_name_leaves_the_others_linked():
    tree = merged([file(b"a"), hardlink(b"b", b"a"), hardlink(b"c", b"a")], [file(b"a", 9)])
    assert tree[b"b"] is tree[b"c"]
    assert (tree[b"a"].nlink, tree[b"b"].nlink) == (1, 2)


def test_contents_are_of_the_layer_that_has_them():
    tree = merged([file(b"a", 1)], [], [file(b"b", 1)])
    assert (tree[b"a"].layer, tree[b"b"].layer) == (0, 2)


# Implicit directories.


def test_an_implicit_directory_inherits_the_lower_one():
    tree = merged([directory(b"d", uid=3, mode=0o2750, xattrs=((b"user.x", b""),))], [file(b"d/x")])
    assert (tree[b"d"].uid, tree[b"d"].mode, tree[b"d"].xattrs) == (3, 0o2750, ((b"user.x", b""),))


def test_an_implicit_directory_without_a_lower_one_is_roots_and_of_1970():
    node = merged([file(b"d/x", mtime_ns=9)])[b"d"]
    assert (node.mode, node.uid, node.gid, node.mtime_ns) == (0o755, 0, 0, 0)


@pytest.mark.parametrize("lower", [file(b"d"), symlink(b"d", b"e"), Member(b"d", Kind.CHARACTER)])
def test_a_lower_non_directory_gives_way_to_an_implicit_directory(lower):
    assert merged([lower, file(b"e/y")], [file(b"d/x")]).keys() == {b"", b"d", b"d/x", b"e", b"e/y"}


@pytest.mark.parametrize("parent", [file(b"d"), symlink(b"d", b"e"), hardlink(b"d", b"low")])
def test_a_non_directory_of_the_same_layer_is_no_parent(parent):
    with pytest.raises(FormatError, match="one layer"):
        merge([[file(b"low"), directory(b"e")], [parent, file(b"d/x")]])


# Hard links.


def test_hard_links_share_a_node_and_count_their_names():
    tree = merged([file(b"a"), hardlink(b"d/b", b"a")])
    assert tree[b"a"] is tree[b"d/b"]
    assert tree[b"a"].nlink == 2


def test_a_hard_link_may_name_a_lower_file():
    tree = merged([file(b"a", 5)], [hardlink(b"b", b"a")])
    assert tree[b"a"] is tree[b"b"]
    assert (tree[b"b"].layer, tree[b"b"].nlink) == (0, 2)


def test_a_hard_link_to_a_whited_out_file_is_refused():
    with pytest.raises(FormatError, match="to nothing"):
        merge([[file(b"a")], [hardlink(b"b", b"a"), whiteout(b"a")]])


def test_a_hard_link_may_come_before_its_target():
    tree = merged([hardlink(b"a", b"b"), hardlink(b"b", b"c"), file(b"c", 4)])
    assert tree[b"a"] is tree[b"b"] is tree[b"c"]
    assert tree[b"c"].nlink == 3


@pytest.mark.parametrize(
    "members",
    [
        [hardlink(b"a", b"none")],
        [hardlink(b"a", b"a")],
        [hardlink(b"a", b"b"), hardlink(b"b", b"a")],
        [file(b"f"), hardlink(b"a", b"f/x")],
    ],
    ids=["missing", "itself", "cycle", "through a file"],
)
def test_a_hard_link_to_nothing_is_refused(members):
    with pytest.raises(FormatError, match="to nothing"):
        merge([members])


def test_a_forward_link_that_is_replaced_asks_for_nothing():
    assert merged([hardlink(b"a", b"none"), file(b"a", 3)])[b"a"].size == 3


@pytest.mark.parametrize("target", [b"d", b""])
@pytest.mark.parametrize("later", [False, True])
def test_a_hard_link_to_a_directory_is_refused(target, later):
    members = [directory(b"d"), hardlink(b"a", target)]
    with pytest.raises(FormatError, match="to a directory"):
        merge([members[::-1] if later else members])


def test_a_hard_link_to_a_symlink_links_the_symlink():
    tree = merged([symlink(b"s", b"f"), file(b"f"), hardlink(b"t", b"s", mode=0o600)])
    assert tree[b"s"] is tree[b"t"]
    assert (tree[b"t"].kind, tree[b"t"].mode) == (Kind.SYMLINK, 0o777)


def test_the_last_header_of_an_inode_gives_its_attributes():
    first, last = (b"user.a", b"1"), (b"user.b", b"2")
    tree = merged([file(b"a", 5, uid=1, xattrs=(first,)), hardlink(b"b", b"a", uid=2, xattrs=(last,))])
    assert (tree[b"a"].uid, tree[b"a"].size, tree[b"a"].xattrs) == (2, 5, (first, last))


def test_hard_links_cannot_gather_more_xattrs_than_a_file_may_have():
    links = [hardlink(b"%d" % n, b"a", xattrs=((b"user.%d" % n, b""),)) for n in range(MAX_XATTRS + 1)]
    assert len(merged([file(b"a"), *links[:-1]])[b"a"].xattrs) == MAX_XATTRS
    with pytest.raises(LimitExceeded, match="xattrs on one member"):
        merge([[file(b"a"), *links]])


def test_the_last_of_several_forward_links_gives_the_attributes():
    tree = merged([hardlink(b"a", b"c", uid=1), hardlink(b"b", b"c", uid=2), file(b"c", uid=3)])
    assert tree[b"c"].uid == 2


def test_a_hard_link_replaces_what_stood_in_its_place():
    tree = merged([file(b"d/x"), file(b"a", 7)], [hardlink(b"d", b"a")])
    assert set(tree) == {b"", b"a", b"d"}


def test_a_link_to_a_forward_link_keeps_its_target_when_that_is_replaced():
    tree = merged([hardlink(b"p", b"c"), hardlink(b"q", b"p"), file(b"p", 7), file(b"c", 3)])
    assert tree[b"q"] is tree[b"c"]
    assert tree[b"p"].size == 7


def test_many_forward_links_in_a_chain_are_bound_in_one_go():
    count = 20_000
    chain = [hardlink(b"%d" % n, b"%d" % (n + 1)) for n in range(count)]
    assert merge([[*chain, file(b"%d" % count)]]).children[b"0"].nlink == count + 1


# The root, devices, xattrs.


def test_the_roots_own_entry_is_applied():
    assert merge([[directory(b"", uid=4, mode=0o711)], []]).uid == 4


def test_a_root_without_an_entry_is_roots_and_of_1970():
    root = merge([])
    assert (root.kind, root.mode, root.uid, root.gid, root.mtime_ns, root.nlink) == (
        Kind.DIRECTORY,
        *(0o755, 0, 0, 0, 2),
    )


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind != Kind.DIRECTORY])
def test_the_root_is_a_directory_or_refused(kind):
    with pytest.raises(FormatError):
        merge([[Member(b"", kind)]])


def test_a_device_0_0_stays_a_device():
    tree = merged([file(b"a")], [Member(b"a", Kind.CHARACTER)])
    assert (tree[b"a"].kind, tree[b"a"].device) == (Kind.CHARACTER, (0, 0))


def test_marks_of_overlayfs_are_dropped():
    xattrs = tuple((name, b"y") for name in (b"trusted.overlay.opaque", b"user.keep", b"user.overlay.x"))
    members = [directory(b"d", xattrs=xattrs), file(b"f", xattrs=xattrs), hardlink(b"g", b"f", xattrs=xattrs)]
    tree = merged([directory(b"d")], members)
    assert {tree[path].xattrs for path in (b"d", b"f", b"g")} == {((b"user.keep", b"y"),)}


def test_directories_count_their_subdirectories():
    tree = merged([file(b"d/e/x"), directory(b"d/f"), file(b"d/y")])
    assert (tree[b""].nlink, tree[b"d"].nlink, tree[b"d/e"].nlink) == (3, 4, 2)


# Limits.


@pytest.mark.parametrize("path", [b"..", b"a/../b", b".", b"a/.", b"a//b", b"/a", b"a/", b"a\0b", b"n" * 256])
def test_paths_that_no_file_can_have_are_refused(path):
    with pytest.raises(FormatError):
        merge([[file(path)]])


def test_a_tree_may_be_as_deep_as_the_limit_and_no_deeper():
    deepest = b"/".join([b"d"] * MAX_DEPTH)
    assert deepest in names([file(deepest)])
    with pytest.raises(LimitExceeded):
        merge([[file(deepest + b"/x")]])


def test_entries_are_counted_with_their_implicit_directories():
    layers = [[file(b"a/b/x"), file(b"a/b/y")], [file(b"c")]]
    merge(layers, max_entries=5)
    with pytest.raises(LimitExceeded):
        merge(layers, max_entries=4)


@settings(max_examples=500)
@given(layer_stacks())
def test_merging_agrees_with_looking_through_the_layers_from_the_top(layers):
    try:
        expected = applied(layers)
    except Refused:
        event("refused")
        with pytest.raises(FormatError):
            merge(layers)
    else:
        event("merged")
        assert shown_by_tree(merge(layers)) == expected
