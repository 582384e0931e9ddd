"""What the doctor says of Docker: whether its containers can be lazy, whatever its file holds."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lazyfs.doctor.docker import check_docker
from lazyfs.doctor.machine import Machine

DEPLOYED = json.loads((Path(__file__).parents[1] / "deploy/docker/daemon.json").read_text())
UNSAID = {"storage-driver": "lazyfs"}


def said(root: Path, looked_at: Path | None = None) -> list[tuple[str, str, str]]:
    """(name, state, fact) of each finding on a machine."""
    found = list(check_docker(Machine(root, os.geteuid(), str(root / "bin")), looked_at))
    assert all(bool(finding.advice) == (finding.state.value != "ok") for finding in found)
    return [(finding.name, finding.state.value, finding.fact) for finding in found]


def daemon_json(root: Path) -> Path:
    file = root / "etc/docker/daemon.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def configured(root: Path, settings: Any) -> None:
    daemon_json(root).write_text(json.dumps(settings))


@contextmanager
def listening(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        yield path


@pytest.mark.parametrize("hides", ["nothing", "etc/docker", "a dangling link"])
def test_without_docker_nothing_is_said(tmp_path, hides):
    if hides == "etc/docker":
        (tmp_path / "etc").mkdir()
        (tmp_path / "etc/docker").touch()
    elif hides == "a dangling link":
        daemon_json(tmp_path).symlink_to("nowhere")
    assert said(tmp_path) == []


@pytest.mark.parametrize(("settings", "more"), [(DEPLOYED, False), (UNSAID, True)])
def test_what_is_deployed_is_right_where_containerd_runs(tmp_path, settings, more):
    configured(tmp_path, settings)
    with listening(tmp_path / "run/containerd/containerd.sock") as path:
        (_, state, fact), containerd = said(tmp_path)
    assert (state, fact.startswith("the storage driver is lazyfs"), "29" in fact) == ("ok", True, more)
    assert containerd == ("docker's containerd", "ok", str(path))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "names no storage driver"),
        ({"features": {"containerd-snapshotter": True}}, "names no storage driver"),
        (DEPLOYED | {"storage-driver": "overlay2"}, "has the storage driver 'overlay2'"),
        (
            DEPLOYED | {"features": {"containerd-snapshotter": False}},
            "switches the containerd image store off",
        ),
        ({"features": {"containerd-snapshotter": False}}, "switches the containerd image store off"),
    ],
)
def test_containers_that_cannot_be_lazy_are_told(tmp_path, settings, told):
    configured(tmp_path, settings)
    ((name, state, fact),) = said(tmp_path)
    assert (name, state, fact) == ("docker", "warning", f"/etc/docker/daemon.json {told}")


def test_what_is_advised_is_right(tmp_path):
    configured(tmp_path, {})
    (finding,) = check_docker(Machine(tmp_path, 0, ""), None)
    for key, value in DEPLOYED.items():
        assert f'"{key}": {json.dumps(value)}' in finding.advice


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"{", "not JSON"),
        (b"[]", "not a JSON object"),
        (b'{"a": 1, "a": 2}', "stands twice"),
        (b"\xff\xfe{\0}\0", "not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b"{" + b" " * (1 << 20) + b"}", "bytes, more than"),
        (b'{"features": ["containerd-snapshotter"]}', "'features' is not an object"),
        (b'{"features": {"containerd-snapshotter": "yes"}}', "'containerd-snapshotter' is not true or false"),
        (b'{"storage-driver": {}}', "'storage-driver' is not a string"),
        (b'{"storage-driver": "lazyfs", "containerd": 7}', "'containerd' is not a string"),
        (b'{"storage-driver": "lazyfs", "containerd": "/a\\u0000"}', "'containerd' is too long, or holds"),
        (b'{"storage-driver": "' + b"a" * 5000 + b'"}', "'storage-driver' is too long, or holds"),
    ],
)
def test_a_damaged_file_is_one_problem(tmp_path, content, told):
    daemon_json(tmp_path).write_bytes(content)
    ((name, state, fact),) = said(tmp_path)
    assert (name, state) == ("docker", "problem")
    assert "/etc/docker/daemon.json" in fact
    assert told in fact
    assert len(fact) < 250


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (os.mkfifo, "a FIFO, not a file"),
        (Path.mkdir, "Is a directory"),
        (lambda path: path.symlink_to("/dev/zero"), "bytes, more than"),
        (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    ],
)
def test_what_is_no_file_holds_nobody(tmp_path, make, told):
    make(daemon_json(tmp_path))
    ((name, state, fact),) = said(tmp_path)
    assert (name, state, told in fact) == ("docker", "problem", True)


@pytest.mark.parametrize("content", [b"", b" \n", b"\xef\xbb\xbf", b"\xef\xbb\xbf{}"])
def test_what_dockerd_reads_as_empty_is_empty(tmp_path, content):
    daemon_json(tmp_path).write_bytes(content)
    ((_, state, fact),) = said(tmp_path)
    assert (state, "names no storage driver" in fact) == ("warning", True)


def test_a_file_that_an_ordinary_user_may_not_read_is_told(tmp_path):
    configured(tmp_path, DEPLOYED)
    daemon_json(tmp_path).parent.chmod(0o700)
    before = os.getresuid()
    os.setresuid(65534, 65534, -1)
    try:
        found = said(tmp_path)
    finally:
        os.setresuid(*before)
    assert found == [("docker", "warning", "/etc/docker/daemon.json: Permission denied")]


def test_docker_is_to_use_the_containerd_that_was_looked_at(tmp_path):
    other = tmp_path / "run/other.sock"
    configured(tmp_path, DEPLOYED | {"containerd": "unix:///run/other.sock"})
    with listening(other), listening(tmp_path / "run/containerd/containerd.sock") as usual:
        _, (_, state, fact) = said(tmp_path)
        assert (state, fact) == ("warning", f"is at {other}, another than was looked at")
        _, found = said(tmp_path, looked_at=other)
        assert found == ("docker's containerd", "ok", str(other))
        other.unlink()
        other.symlink_to(usual)
        _, (_, state, _) = said(tmp_path)
        assert state == "ok"


@pytest.mark.parametrize("containerd", [{}, {"containerd": "/run/containerd/containerd.sock"}])
def test_a_containerd_that_does_not_run_is_told(tmp_path, containerd):
    configured(tmp_path, DEPLOYED | containerd)
    _, finding = check_docker(Machine(tmp_path, 0, ""), None)
    assert (finding.state.value, "No such file" in finding.fact) == ("warning", True)
    assert ("one of its own" in finding.advice) == (not containerd)
