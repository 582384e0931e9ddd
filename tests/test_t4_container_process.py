"""What a container's process is: identity, words, environment, and what the runtime is told."""

import json
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.container.capabilities import DEFAULT
from lazyfs.container.given import Volume
from lazyfs.container.image_user import Identity, identify, parse_accounts, parse_groups
from lazyfs.container.network_files import network_files
from lazyfs.container.process import (
    ImageProcess,
    Wishes,
    arguments_of,
    checked_hostname,
    environment_of,
    parse_entrypoint,
    parse_env,
    parse_env_file,
    signal_number,
    working_dir_of,
)
from lazyfs.container.root_tree import RootTree
from lazyfs.container.runtime_spec import ContainerSpec, runtime_spec
from lazyfs.container.user_namespace import IdRange, parse_subordinates
from lazyfs.errors import ContainerError
from lazyfs.oci.config import DEFAULT_PATH

PASSWD = b"""root:x:0:0:root:/root:/bin/bash
# a comment
broken line
app:x:1000:1001:An App:/home/app:/bin/sh
7:x:1007:1007::relative:/bin/sh
huge:x:99999999999:0::/:/bin/sh
few:x:1234:567
"""
GROUP = b"""root:x:0:
wheel:x:10:app,other
app:x:1001:
audio:x:29:other,app
tty:x:5:root
bad:x:-1:app
few:x:30
"""


@pytest.mark.parametrize(
    ("user", "identity"),
    [
        ("", Identity(0, 0, (5,), "/root")),
        ("root", Identity(0, 0, (5,), "/root")),
        ("app", Identity(1000, 1001, (10, 29), "/home/app")),
        ("1000", Identity(1000, 1001, (10, 29), "/home/app")),
        ("app:tty", Identity(1000, 5, (), "/home/app")),
        ("app:77", Identity(1000, 77, (), "/home/app")),
        ("4242", Identity(4242, 0, (), "/")),
        ("4242:wheel", Identity(4242, 10, (), "/")),
        ("7", Identity(7, 0, (), "/")),
        ("1007", Identity(1007, 1007, (), "/")),
        (":29", Identity(0, 29, (), "/root")),
        ("few", Identity(1234, 567, (), "/")),
        ("few:few", Identity(1234, 30, (), "/")),
    ],
)
def test_an_identity_is_looked_up_as_docker_does(user, identity):
    assert identify(user, PASSWD, GROUP) == identity


def test_without_account_files_numbers_still_count():
    assert identify("12:34", b"", b"") == Identity(12, 34)
    assert identify("", b"", b"") == Identity(0, 0)


@pytest.mark.parametrize("user", ["nobody", "app:nogroup", "4294967295", "0:4294967295", "huge", "-1"])
def test_who_is_not_there_is_an_error(user):
    with pytest.raises(ContainerError):
        identify(user, PASSWD, GROUP)


@given(st.binary(max_size=200), st.binary(max_size=200), st.text(max_size=20))
def test_any_account_files_parse_or_give_the_one_error(passwd, group, user):
    list(parse_accounts(passwd))
    list(parse_groups(group))
    try:
        identity = identify(user, passwd, group)
    except ContainerError:
        return
    assert 0 <= identity.uid < 2**32 - 1
    assert identity.home.startswith("/")


IMAGE = ImageProcess(
    env=("A=image", "PATH=/opt", "EMPTY="), entrypoint=("entry", "-x"), cmd=("cmd",), working_dir="/work"
)


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        (Wishes(), ("entry", "-x", "cmd")),
        (Wishes(command=("a", "b")), ("entry", "-x", "a", "b")),
        (Wishes(entrypoint=("new",)), ("new",)),
        (Wishes(entrypoint=("new",), command=("a",)), ("new", "a")),
        (Wishes(entrypoint=(), command=("a",)), ("a",)),
    ],
)
def test_entrypoint_and_command_combine_as_docker_combines_them(wishes, words):
    assert arguments_of(IMAGE, wishes) == words


def test_nothing_to_execute_is_an_error():
    for wishes in (Wishes(), Wishes(entrypoint=()), Wishes(command=("",))):
        with pytest.raises(ContainerError, match="no command"):
            arguments_of(ImageProcess(), wishes)


def test_the_environment_has_each_name_once_and_the_user_goes_last():
    wishes = Wishes(env=("A=user", "B=2=3"), terminal=True)
    values = environment_of(IMAGE, wishes, Identity(0, 0, (), "/root"), "box")
    assert values == (
        *("PATH=/opt", "HOSTNAME=box", "TERM=xterm", "HOME=/root", "A=user", "EMPTY=", "B=2=3"),
    )
    plain = environment_of(ImageProcess(), Wishes(env=("HOME=/x",)), Identity(0, 0), "box")
    assert plain == (f"PATH={DEFAULT_PATH}", "HOSTNAME=box", "HOME=/x")


def test_the_working_directory_is_absolute():
    assert working_dir_of(IMAGE, Wishes()) == "/work"
    assert working_dir_of(IMAGE, Wishes(working_dir="/w")) == "/w"
    assert working_dir_of(ImageProcess(), Wishes()) == "/"
    assert working_dir_of(ImageProcess(working_dir="app"), Wishes()) == "/app"
    with pytest.raises(ContainerError):
        working_dir_of(IMAGE, Wishes(working_dir="w"))


def test_an_entrypoint_is_a_word_or_a_json_array():
    assert parse_entrypoint("/bin/sh -c") == ("/bin/sh -c",)
    assert parse_entrypoint("") == ()
    assert parse_entrypoint('["a", "b c"]') == ("a", "b c")
    for wrong in ("[1]", '["a"', '[["a"]]'):
        with pytest.raises(ContainerError):
            parse_entrypoint(wrong)


def test_variables_come_from_words_files_and_our_environment():
    ours = {"MINE": "here"}
    assert list(parse_env("A=b=c", ours)) == ["A=b=c"]
    assert list(parse_env("MINE", ours)) == ["MINE=here"]
    assert list(parse_env("OTHER", ours)) == []
    assert parse_env_file("# no\n\n A=1\nMINE\nOTHER\nB=\n", ours) == ["A=1", "MINE=here", "B="]
    assert parse_env_file("A=1\x0c2\u20283\r4\r\nB=5", ours) == ["A=1\x0c2\u20283\r4", "B=5"]
    with pytest.raises(ContainerError):
        parse_env("=x", ours)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        *(("SIGTERM", 15), ("term", 15), ("15", 15), ("SIGQUIT", 3), ("SIGRTMIN+3", signal.SIGRTMIN + 3)),
        *(("SIGRTMIN", signal.SIGRTMIN), ("64", 64)),
    ],
)
def test_signals_have_names_and_numbers(name, number):
    assert signal_number(name) == number


@pytest.mark.parametrize("name", ["", "SIG", "0", "65", "NONE", "SIGRTMIN+99", "SIGTERM+", "-1"])
def test_what_is_no_signal_is_an_error(name):
    with pytest.raises(ContainerError):
        signal_number(name)


def spec(**more) -> dict:
    settled = {
        "root": Path("/r"),
        "arguments": ["a"],
        "env": ["A=1"],
        "working_dir": "/w",
        "identity": Identity(0, 0, (5,)),
        "hostname": "box",
    }
    return runtime_spec(ContainerSpec(**{**settled, **more}))


def kinds(document: dict) -> set[str]:
    return {namespace["type"] for namespace in document["linux"]["namespaces"]}


def test_the_specification_is_json_and_says_what_was_settled():
    volume = Volume(Path("/src"), "/dst", read_only=True)
    document = json.loads(json.dumps(spec(volumes=[volume], read_only=True, terminal=True, window=(33, 77))))
    assert document["process"]["user"] == {"uid": 0, "gid": 0, "additionalGids": [5]}
    assert document["process"]["terminal"]
    assert document["process"]["consoleSize"] == {"height": 33, "width": 77}
    assert document["root"] == {"path": "/r", "readonly": True}
    assert document["mounts"][-1] == {
        "destination": "/dst",
        "type": "bind",
        "source": "/src",
        "options": ["rbind", "rprivate", "ro"],
    }
    assert kinds(document) == {"pid", "ipc", "uts", "mount"}
    assert document["linux"]["resources"]["devices"] == [{"allow": False, "access": "rwm"}]
    assert "/proc/kcore" in document["linux"]["maskedPaths"]


def test_only_root_has_capabilities_at_once():
    assert spec()["process"]["capabilities"]["effective"] == list(DEFAULT)
    own = spec(identity=Identity(1, 1))["process"]["capabilities"]
    assert own["bounding"] == list(DEFAULT)
    assert own["effective"] == own["permitted"] == own["inheritable"] == []


def test_a_network_of_its_own_and_cgroups_of_its_own():
    assert kinds(spec(network="none", private_cgroups=True)) >= {"network", "cgroup"}


def test_without_root_nothing_is_asked_that_takes_it():
    document = spec(rootless=True)
    assert "resources" not in document["linux"]
    mounts = {mount["destination"]: mount for mount in document["mounts"]}
    assert mounts["/sys"]["options"][0] == "rbind"
    assert "/sys/fs/cgroup" not in mounts
    assert "gid=5" not in mounts["/dev/pts"]["options"]
    assert {m["destination"]: m["type"] for m in spec(rootless=True, network="none")["mounts"]}[
        "/sys"
    ] == "sysfs"


def test_the_files_of_names_are_the_hosts_or_say_only_who_it_is(tmp_path):
    (tmp_path / "hosts").write_text("127.0.0.1 localhost\n10.0.0.1 box\n")
    (tmp_path / "resolv.conf").write_text("nameserver 1.2.3.4\n")
    files = network_files("host", "box", tmp_path)
    assert files["/etc/hosts"] == (tmp_path / "hosts").read_bytes()
    assert files["/etc/resolv.conf"] == b"nameserver 1.2.3.4\n"
    alone = network_files("none", "me", tmp_path)
    assert alone.keys() == {"/etc/hosts", "/etc/hostname"}
    assert alone["/etc/hosts"].endswith(b"127.0.1.1\tme\n")
    assert alone["/etc/hostname"] == b"me\n"


def test_a_range_of_ids_is_found_by_name_or_number():
    text = "other:1:2\nbroken\nme:100000:65536\n1000:5:6\nempty:7:0\n"
    assert parse_subordinates(text, {"me", "7"}) == IdRange(100000, 65536)
    assert parse_subordinates(text, {"1000"}) == IdRange(5, 6)
    assert parse_subordinates(text, {"empty", "absent"}) is None


@pytest.mark.parametrize("name", ["box", "a", "db-1.example", "9" * 63])
def test_a_host_may_be_called_so(name):
    assert checked_hostname(name) == name


@pytest.mark.parametrize("name", ["my box", "box\n10.0.0.1 bank", "-box", "box.", "9" * 64, "kästchen"])
def test_a_host_is_not_called_so(name):
    with pytest.raises(ContainerError, match="--hostname is at most 63"):
        checked_hostname(name)


def test_a_path_of_an_image_leads_nowhere_else(tmp_path):
    """Neither by links nor by what C takes for the end of a string."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "file").write_bytes(b"inside" * 300_000)
    (tmp_path / "outside").touch()
    (root / "link").symlink_to(tmp_path / "outside")
    (root / "round").symlink_to("round")
    with RootTree(root) as tree:
        assert tree.read("/file", 10) == b"insideinsi"
        assert tree.read("/file", 4 << 20) == (root / "file").read_bytes()
        for path in ("/link", "/../outside", "/file/x", "/file\0x", "/" + "x" * 300, "/round", "/absent"):
            assert (tree.status(path), tree.read(path, 10)) == (None, b""), path
