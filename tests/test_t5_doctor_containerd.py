"""What the doctor says of containerd: by what the real one says of its file."""

import json
from contextlib import ExitStack
from pathlib import Path

from lazyfs.doctor import containerd as containerd_checks
from lazyfs.doctor.containerd import Containerd, check_config, check_containerd
from tests.support.doctors import REAL, listening, machine_at, program, states

GOOD_1 = """
version = 2
[proxy_plugins.lazyfs]
type = "snapshot"
address = "{address}"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "lazyfs"
disable_snapshot_annotations = false
"""


def examine_containerd(tmp_path: Path, text: str) -> dict[str, str]:
    file = tmp_path / "config.toml"
    file.write_text(text)
    return states(check_containerd(REAL, file, tmp_path / "containerd.sock"))


def test_containerd_is_told_right_or_wrong(tmp_path) -> None:
    """By what the real containerd says of the file."""
    with ExitStack() as stack:
        address = stack.enter_context(listening(tmp_path / "s.sock"))
        good = GOOD_1.format(address=address)
        found = examine_containerd(tmp_path, good)
        assert found == {
            "containerd": "ok",
            "proxy plugin": "ok",
            "CRI's snapshotter": "ok",
            "snapshot annotations": "ok",
            "containerd's socket": "warning",
        }
        stack.enter_context(listening(tmp_path / "containerd.sock"))
        assert examine_containerd(tmp_path, good)["containerd's socket"] == "ok"
        for old, new, name, state in (
            ('snapshotter = "lazyfs"', 'snapshotter = "overlayfs"', "CRI's snapshotter", "warning"),
            ("annotations = false", "annotations = true", "snapshot annotations", "problem"),
            ("disable_snapshot_annotations = false", "", "snapshot annotations", "problem"),
            (str(address), "/nowhere/s.sock", "proxy plugin", "problem"),
            ('type = "snapshot"', 'type = "content"', "proxy plugin", "problem"),
            ("proxy_plugins.lazyfs", "proxy_plugins.other", "proxy plugin", "warning"),
            ("version = 2", "version = [", "containerd", "problem"),
        ):
            assert old in good
            assert examine_containerd(tmp_path, good.replace(old, new))[name] == state, new


GOOD_2 = {
    "proxy_plugins": {
        "lazyfs": {
            "type": "snapshot",
            "address": "",
            "capabilities": ["remap-ids"],
            "exports": {"root": "/var/lib/lazyfs/snapshotter", "enable_remote_snapshot_annotations": "true"},
        }
    },
    "plugins": {
        "io.containerd.cri.v1.images": {"snapshotter": "lazyfs", "disable_snapshot_annotations": False},
        "io.containerd.transfer.v1.local": {
            "unpack_config": [{"platform": "linux", "snapshotter": "lazyfs"}]
        },
    },
}


def test_containerd_2_has_more_to_be_told(tmp_path) -> None:
    with listening(tmp_path / "s.sock") as address:
        good = json.loads(json.dumps(GOOD_2).replace('"address": ""', f'"address": "{address}"'))
        assert set(states(check_config(Containerd((2, 1), good, tmp_path))).values()) == {"ok"}
        plugin = good["proxy_plugins"]["lazyfs"]
        exports = plugin.pop("exports")
        found = states(check_config(Containerd((2, 1), good, tmp_path)))
        assert (found["transfer annotations"], found["exported root"]) == ("warning", "warning")
        assert set(states(check_config(Containerd((2, 0), good, tmp_path))).values()) == {"ok"}
        plugin |= {"exports": exports, "capabilities": ["rebase"]}
        found = states(check_config(Containerd((2, 1), good, tmp_path)))
        assert (found["user namespaces"], found["capability rebase"]) == ("warning", "problem")
        good["plugins"]["io.containerd.transfer.v1.local"]["unpack_config"][0]["snapshotter"] = "overlayfs"
        assert states(check_config(Containerd((2, 1), good, tmp_path)))["transfer service"] == "warning"
        good["plugins"]["io.containerd.cri.v1.images"]["disable_snapshot_annotations"] = True
        assert states(check_config(Containerd((2, 1), good, tmp_path)))["snapshot annotations"] == "problem"


def test_containerd_must_be_there_to_be_looked_at(tmp_path) -> None:
    machine = machine_at(tmp_path)
    assert states(check_containerd(machine, None, None)) == {"containerd": "ok"}
    for version, state in (("containerd x v1.5.9 y", "problem"), ("nonsense", "problem")):
        program(tmp_path, "containerd", f"echo {version}")
        assert states(check_containerd(machine, None, None))["containerd"] == state
    assert containerd_checks.PLUGIN == "lazyfs"
