"""What the doctor says of Podman: whether it looks for layers where lazyfs shows them."""

import os
from pathlib import Path

import pytest

from lazyfs.doctor.machine import Machine
from lazyfs.doctor.podman import check_podman

DEPLOYED = (Path(__file__).parents[1] / "deploy/podman/storage.conf").read_text()
STORE = "/var/lib/lazyfs/store"
MOUNTED = f"30 20 0:50 / {STORE} rw,relatime - fuse.lazyfs lazyfs:store rw\n"
ROOT = "20 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n"


def said(root: Path, files: dict[str, str], *programs: str) -> list[tuple[str, str]]:
    """(state, fact) of each finding, on a machine with these files and programs."""
    for name in programs:
        files = files | {f"/bin/{name}": "#!/bin/sh\n"}
    for name, content in files.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        path.chmod(0o755)
    found = list(check_podman(Machine(root, 0, str(root / "bin"))))
    assert all(bool(finding.advice) == (finding.state.value != "ok") for finding in found)
    return [(finding.state.value, finding.fact) for finding in found]


def test_without_podman_nothing_is_looked_at(tmp_path):
    ((state, fact),) = said(tmp_path, {"/etc/containers/storage.conf": DEPLOYED})
    assert (state, "not installed" in fact) == ("ok", True)


@pytest.mark.parametrize("engine", ["podman", "crio"])
@pytest.mark.parametrize("place", ["/etc/containers/storage.conf", "/usr/share/containers/storage.conf"])
def test_what_is_deployed_is_right_where_the_daemon_runs(tmp_path, engine, place):
    files = {place: DEPLOYED, "/proc/self/mountinfo": ROOT + MOUNTED}
    assert said(tmp_path, files, engine) == [("ok", STORE)]


@pytest.mark.parametrize(
    ("text", "mounts", "state", "fact"),
    [
        (DEPLOYED, ROOT, "warning", f"lazyfs shows nothing at {STORE}"),
        (DEPLOYED.replace(":ref", ""), ROOT + MOUNTED, "problem", "without an image's name"),
        ("[storage]\n", ROOT, "warning", "names no additional layer store"),
        ("[storage]\noptions = 7\n", ROOT, "warning", "names no additional layer store"),
        ("[storage\n", ROOT, "problem", "storage.conf"),
    ],
)
def test_what_is_wrong_is_told(tmp_path, text, mounts, state, fact):
    files = {"/etc/containers/storage.conf": text, "/proc/self/mountinfo": mounts}
    ((found, told),) = said(tmp_path, files, "podman")
    assert (found, fact in told) == (state, True)


def test_a_machine_that_was_not_set_up_is_told_so(tmp_path):
    ((state, fact),) = said(tmp_path, {}, "podman")
    assert (state, "names no additional layer store" in fact) == ("warning", True)


def test_a_configuration_that_nobody_writes_to_holds_nobody(tmp_path):
    place = tmp_path / "etc/containers"
    place.mkdir(parents=True)
    os.mkfifo(place / "storage.conf")
    ((state, fact),) = said(tmp_path, {}, "podman")
    assert (state, "a FIFO" in fact) == ("problem", True)
