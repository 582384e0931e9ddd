"""What containers are kept from, as the runtime is told it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.container.capabilities import DEFAULT, KNOWN, available_here, chosen
from lazyfs.container.confinement import confine
from lazyfs.container.seccomp import default_profile, read_profile
from lazyfs.errors import ContainerError

names = st.sets(st.sampled_from([*KNOWN, "ALL"]), max_size=4)


def denied(profile: dict, **wanted: object) -> set[str]:
    """The calls that a profile denies whatever their arguments."""
    rules = [rule for rule in profile["syscalls"] if "args" not in rule]
    return {name for rule in rules for name in rule["names"] if wanted.items() <= rule.items()}


@pytest.mark.parametrize(
    ("added", "dropped", "expected"),
    [
        ([], [], set(DEFAULT)),
        (["sys_time"], ["CAP_CHOWN"], {*DEFAULT, "CAP_SYS_TIME"} - {"CAP_CHOWN"}),
        (["ALL"], ["net_raw"], set(KNOWN) - {"CAP_NET_RAW"}),
        (["net_raw"], ["all"], {"CAP_NET_RAW"}),
        ([], ["ALL"], set()),
    ],
)
def test_capabilities_are_added_and_dropped_as_docker_does(added, dropped, expected):
    assert set(chosen(added, dropped, KNOWN)) == expected


@given(names, names)
def test_what_is_dropped_by_name_is_not_there_and_each_stands_once(added, dropped):
    got = chosen(added, dropped, KNOWN)
    assert (dropped - added).isdisjoint(got)
    assert sorted(got, key=KNOWN.index) == list(got)
    assert (added - {"ALL"}) <= set(got)


def test_what_is_no_capability_or_not_ours_is_an_error():
    with pytest.raises(ContainerError, match="no capability 'FLY'"):
        chosen(["FLY"], [], KNOWN)
    with pytest.raises(ContainerError, match="CAP_BPF cannot be given"):
        chosen(["BPF"], [], DEFAULT)
    assert chosen(["ALL"], [], DEFAULT) == tuple(name for name in KNOWN if name in DEFAULT)
    assert set(available_here()) <= set(KNOWN)


def test_a_call_is_denied_unless_a_capability_permits_it():
    plain = denied(default_profile(DEFAULT, "x86_64"))
    assert {"mount", "bpf", "keyctl", "open_by_handle_at", "reboot", "settimeofday", "init_module"} <= plain
    assert {"read", "chown", "chroot", "ptrace", "seccomp", "clone"}.isdisjoint(plain)
    bpf = denied(default_profile([*DEFAULT, "CAP_BPF"], "x86_64"))
    assert plain - bpf == {"bpf"}
    assert "keyctl" in denied(default_profile(KNOWN, "x86_64"))
    assert denied(default_profile(DEFAULT, "x86_64"), errnoRet=38) == {"clone3"}


@pytest.mark.parametrize(("machine", "first", "argument"), [("x86_64", "X86_64", 0), ("s390x", "S390X", 1)])
def test_every_new_namespace_is_denied_where_its_flag_stands(machine, first, argument):
    profile = default_profile(DEFAULT, machine)
    assert profile["architectures"][0] == f"SCMP_ARCH_{first}"
    arguments = [arg for rule in profile["syscalls"] for arg in rule.get("args", ())]
    assert {arg["index"] for arg in arguments} == {argument}
    assert sum(arg["value"] for arg in arguments) == 0x7E020000
    assert not any("args" in rule for rule in default_profile(["CAP_SYS_ADMIN"], machine)["syscalls"])


DOCKERS = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "defaultErrnoRet": 1,
    "archMap": [
        {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
        {"architecture": "SCMP_ARCH_S390X", "subArchitectures": ["SCMP_ARCH_S390"]},
    ],
    "syscalls": [
        {"names": ["read"], "action": "SCMP_ACT_ALLOW", "comment": "always"},
        {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["s390_guarded"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["s390", "s390x"]}},
    ],
}


@pytest.mark.parametrize(
    ("machine", "capabilities", "names", "architectures"),
    [
        ("x86_64", (), ["read", "clone"], ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]),
        (
            "s390x",
            ["CAP_SYS_ADMIN"],
            ["read", "mount", "s390_guarded"],
            ["SCMP_ARCH_S390X", "SCMP_ARCH_S390"],
        ),
    ],
)
def test_dockers_profiles_are_made_to_fit(machine, capabilities, names, architectures):
    got = read_profile(json.dumps(DOCKERS).encode(), capabilities, machine)
    assert [name for rule in got["syscalls"] for name in rule["names"]] == names
    assert all(rule.keys() == {"names", "action"} for rule in got["syscalls"])
    assert (got["architectures"], got["defaultErrnoRet"]) == (architectures, 1)


def test_our_own_profile_can_be_written_to_a_file_and_read(tmp_path):
    profile = default_profile(DEFAULT, "x86_64")
    (tmp_path / "profile").write_text(json.dumps(profile))
    assert read_profile(json.dumps(profile).encode(), DEFAULT, "x86_64") == profile
    got = confine([], [], [f"seccomp={tmp_path}/profile", "no-new-privileges"])
    assert (got.seccomp, got.no_new_privileges) == (profile, True)
    got = confine([], [], ["seccomp:unconfined", "no-new-privileges:true"])
    assert (got.seccomp, got.no_new_privileges) == (None, True)


@given(st.binary() | st.recursive(st.none() | st.text(), lambda of: st.lists(of) | st.dictionaries(
    st.sampled_from(["defaultAction", "syscalls", "archMap", "includes", "excludes", "caps"]), of
)).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_any_file_is_a_profile_or_the_one_error(data):
    try:
        got = read_profile(data, DEFAULT, "x86_64")
    except ContainerError:
        return
    assert got["defaultAction"] is not None or "null" in data.decode()


@pytest.mark.parametrize("option", ["seccomp", "seccomp=/no/such/file", "apparmor=x", "no-new-privileges=2"])
def test_options_that_make_no_sense_are_an_error(option):
    with pytest.raises(ContainerError):
        confine([], [], [option])
