"""containerd's filter language: what parses, and what matches."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyfs.snapshotter.filters import Selector, any_of, parse_filters
from lazyfs.snapshotter.model import BadSnapshotCall, Info, Kind

PARSED = {
    "name": Selector(("name",), ""),
    "name==foo": Selector(("name",), "==", "foo"),
    " name == foo": Selector(("name",), "==", "foo"),
    "labels.foo": Selector(("labels", "foo"), ""),
    "labels.foo-bar_1!=x": Selector(("labels", "foo-bar_1"), "!=", "x"),
    'labels."very complex label"==something': Selector(("labels", "very complex label"), "==", "something"),
    'labels."containerd.io/snapshot.ref"==sha256:ab': Selector(
        ("labels", "containerd.io/snapshot.ref"), "==", "sha256:ab"
    ),
    'parent==""': Selector(("parent",), "==", ""),
    'labels.""==x': Selector(("labels", ""), "==", "x"),
    "name==a.b=c!d": Selector(("name",), "==", "a.b=c!d"),
    "name~=/foo.*/": Selector(("name",), "~=", "foo.*"),
    "name~=|a/b|": Selector(("name",), "~=", "a/b"),
    r"name~=/a\/b/": Selector(("name",), "~=", "a/b"),
    "name~=foo": Selector(("name",), "~=", "foo"),
    r'name=="a\"\\\n\t"': Selector(("name",), "==", 'a"\\\n\t'),
    r'name=="\x41\101\u00e9\U0001F600"': Selector(("name",), "==", "AA\u00e9\U0001f600"),
    r'name=="\xc3\xa9\303\251"': Selector(("name",), "==", "\u00e9\u00e9"),
    r'name=="\xff"': Selector(("name",), "==", "\ufffd"),
    "name==\u00e9": Selector(("name",), "==", "\u00e9"),
}


@pytest.mark.parametrize("text", PARSED)
def test_one_selector_parses(text):
    assert parse_filters([text]) == [(PARSED[text],)]


@pytest.mark.parametrize(
    "text",
    [
        *(
            "=",
            "==x",
            "name=",
            "name==",
            "name=x",
            "name===x",
            "name!x",
            "name==x y",
            "name,",
            ",name",
            "name x",
        ),
        *("name.", ".name", "name..x", 'name=="x', r'name=="\q"', r'name=="\x4"', r'name=="\U00110000"'),
        *(
            r'name=="\ud800"',
            r'name=="\777"',
            "name==/x/",
            "name==|x|",
            "labels./x/",
            "name==.x",
            'name=="a\nb"',
        ),
        *(
            "name==x,,name==y",
            "na\0me",
            "name==\0",
            "{}",
            'name=="x"y',
            r'name=="\'"',
            "name==" + "x" * 70_000,
        ),
    ],
)
def test_what_is_no_filter_is_refused(text):
    with pytest.raises(BadSnapshotCall, match="filter"):
        parse_filters([text])


def test_commas_join_conditions_and_an_empty_filter_has_none():
    kind, name = Selector(("kind",), "==", "view"), Selector(("name",), "")
    assert parse_filters(["kind==view,name", "", "name"]) == [(kind, name), (), (name,)]


SNAPSHOT = Info("k8s.io/3/x", "below", Kind.ACTIVE, 1, 2, {"a.b": "1", "c": "2"})
ROOT = Info("root", "", Kind.COMMITTED, 1, 2, {})


@pytest.mark.parametrize(
    ("text", "snapshot", "root"),
    [
        ("", True, True),
        ("name", True, True),
        ("parent", True, True),
        ('parent==""', False, True),
        ('parent!=""', True, False),
        ("parent==below", True, False),
        ("kind==active", True, False),
        ("kind==committed", False, True),
        ("kind==Active", False, False),
        ("labels.c", True, False),
        ("labels.a.b==1", True, False),
        ('labels."a.b"==1', True, False),
        ("labels.c==1", False, False),
        ("labels.c!=1", True, True),
        ('labels.c!=""', True, False),
        ('labels.c==""', False, False),
        ("labels", False, False),
        ("labels.c~=^2$", True, False),
        ("labels.c~=^$", False, True),
        ("name~=/k8s.io./", True, False),
        ("name~=(", False, False),
        ("size", False, False),
        ("size!=3", True, True),
        ("kind==active,labels.c==2", True, False),
        ("kind==active,labels.c==3", False, False),
    ],
)
def test_matching(text, snapshot, root):
    holds = any_of(parse_filters([text]))
    assert (holds(SNAPSHOT), holds(ROOT)) == (snapshot, root)


def test_any_alternative_is_enough_and_none_is_no_condition():
    assert any_of(parse_filters(["kind==view", "labels.c"]))(SNAPSHOT)
    assert not any_of(parse_filters(["kind==view", "labels.d"]))(SNAPSHOT)
    assert any_of([])(SNAPSHOT)


@settings(max_examples=300)
@given(st.text(alphabet='nameki.,=!~"/|\\x0 \n\u00e9') | st.text())
def test_garbage_parses_or_is_refused(text):
    try:
        (selectors,) = parse_filters([text])
    except BadSnapshotCall:
        return
    any_of([selectors])(SNAPSHOT)


def go_quoted(text: str) -> str:
    """As Go's %q, with every character escaped that need not be plain."""
    return '"' + "".join(c if c.isalnum() and c.isascii() else f"\\U{ord(c):08x}" for c in text) + '"'


@settings(max_examples=200)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])), st.text(alphabet="abc._-/"))
def test_a_quoted_name_is_found_whatever_it_holds(name, label):
    info = Info(name, name, Kind.VIEW, 0, 0, {label: name} if name else {})
    text = f"labels.{go_quoted(label)}=={go_quoted(name)},parent=={go_quoted(name)}"
    assert any_of(parse_filters([text]))(info) == bool(name)
