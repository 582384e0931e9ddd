"""What deploy/ holds is accepted by those whom it is for: systemd, containerd, and lazyfs itself."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from lazyfs.cli.main import group
from lazyfs.config import load_config
from lazyfs.doctor.containerd import check_containerd
from lazyfs.doctor.findings import State
from lazyfs.doctor.machine import Machine
from tests.support.containerd_config import documented
from tests.support.containerd_release import SUITES, release
from tests.support.runner import executable

DEPLOY = Path(__file__).parents[1] / "deploy"
UNITS = sorted(DEPLOY.glob("systemd/*.service"))
SNIPPETS = {
    "1.6": "containerd-1.6-1.7.toml",
    "1.7": "containerd-1.6-1.7.toml",
    "2.1": "containerd-2.toml",
}


def settings_of(unit: Path) -> dict[str, list[str]]:
    """The settings of a unit, by name."""
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def manifests() -> list[dict[str, Any]]:
    return [
        found for found in yaml.safe_load_all((DEPLOY / "kubernetes/daemonset.yaml").read_text()) if found
    ]


def daemon_sets() -> dict[str, dict[str, Any]]:
    return {found["metadata"]["name"]: found for found in manifests() if found["kind"] == "DaemonSet"}


def command_lines() -> Iterator[tuple[str, list[str]]]:
    """Every command line of lazyfs in deploy/, without the program's name."""
    for unit in UNITS:
        (line,) = settings_of(unit)["ExecStart"]
        words = shlex.split(line)
        assert words[0] == "/usr/bin/lazyfs"
        yield unit.name, words[1:]
    for name, found in daemon_sets().items():
        for container in found["spec"]["template"]["spec"]["containers"]:
            yield name, container["args"]
    text = (DEPLOY / "Containerfile").read_text()
    assert 'ENTRYPOINT ["/usr/bin/lazyfs"]' in text
    yield "Containerfile", json.loads(re.search(r"^CMD (\[.*\])$", text, re.MULTILINE)[1])  # type: ignore[index]


def test_podman_is_told_of_a_helper_that_is_installed() -> None:
    told = tomllib.loads((DEPLOY / "podman/registries.conf").read_text())
    helper = Path(told.pop("additional-layer-store-auth-helper"))
    assert told == {}
    assert helper.parent == Path("/usr/bin")
    assert Path(executable()).with_name(helper.name).is_file()


def test_with_podmans_drop_in_the_daemon_shows_layers_where_its_storage_looks() -> None:
    (line,) = settings_of(DEPLOY / "systemd/lazyfs-daemon.service")["ExecStart"]
    forgotten, with_store = settings_of(DEPLOY / "podman/lazyfs-daemon.conf")["ExecStart"]
    storage = tomllib.loads((DEPLOY / "podman/storage.conf").read_text())["storage"]
    (store,) = storage["options"]["additionallayerstores"]
    assert forgotten == ""
    assert with_store == f"{line} --layer-store {store.removesuffix(':ref')}"
    assert store.endswith(":ref")


@pytest.mark.parametrize(("where", "words"), list(command_lines()))
def test_every_command_line_is_one(where: str, words: list[str]) -> None:
    """Parsed by the real command, with nothing left over."""
    if words == ["--help"]:
        assert subprocess.run([executable(), *words], capture_output=True, check=True).stdout
        return
    context = click.Context(group, info_name="lazyfs")
    command = group.get_command(context, words[0])
    assert command is not None
    parsed = command.make_context(words[0], words[1:], parent=context)
    assert {"root", "socket"} <= parsed.params.keys()
    assert parsed.args == []


def test_both_sides_name_the_same_sockets_and_roots() -> None:
    options = {
        where: dict(word[2:].split("=", 1) for word in _joined(words))
        for where, words in command_lines()
        if words[1:]
    }
    for daemon, snapshotter in (
        ("lazyfs-daemon.service", "lazyfs-snapshotter.service"),
        ("lazyfs-daemon", "lazyfs-snapshotter"),
    ):
        assert options[snapshotter]["daemon"] == options[daemon]["socket"] == "/run/lazyfs/daemon.sock"
        for name in set(SNIPPETS.values()):
            plugin = tomllib.loads((DEPLOY / "containerd" / name).read_text())["proxy_plugins"]["lazyfs"]
            assert plugin["address"] == options[snapshotter]["socket"]
            assert (
                plugin.get("exports", {}).get("root", options[snapshotter]["root"])
                == options[snapshotter]["root"]
            )


def _joined(words: list[str]) -> Iterator[str]:
    """Options as --name=value, without flags."""
    for word, after in zip(words, [*words[1:], ""], strict=True):
        if word.startswith("--") and "=" in word:
            yield word
        elif word.startswith("--") and after and not after.startswith("--"):
            yield f"{word}={after}"


def installed_units(place: Path) -> list[Path]:
    """Copies of the units that name the program where it is here."""
    copies = []
    for unit in UNITS:
        copy = place / unit.name
        copy.write_text(unit.read_text().replace("/usr/bin/lazyfs", executable()))
        copies.append(copy)
    return copies


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *installed_units(tmp_path)],
        capture_output=True,
        check=False,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_systemd_finds_a_fault_in_a_unit(tmp_path: Path) -> None:
    unit = installed_units(tmp_path)[0]
    unit.write_text(
        unit.read_text().replace("SystemCallFilter=@system-service", "SystemCallFilter=@no-such-set")
    )
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", unit],
        capture_output=True,
        check=False,
        text=True,
    )
    assert "no-such-set" in done.stderr


@pytest.mark.parametrize("unit", UNITS, ids=[unit.name for unit in UNITS])
def test_units_keep_their_mounts_visible_and_are_ordered(unit: Path) -> None:
    found = settings_of(unit)
    private = {
        *("ProtectSystem", "ProtectHome", "PrivateTmp", "PrivateDevices", "PrivateMounts", "ReadWritePaths"),
        *("ProtectKernelTunables", "ProtectKernelModules", "ProtectKernelLogs", "ProtectControlGroups"),
        *(
            "ReadOnlyPaths",
            "InaccessiblePaths",
            "TemporaryFileSystem",
            "BindPaths",
            "RootDirectory",
            "ProtectProc",
        ),
        *("DynamicUser", "MountFlags"),
    }
    assert private.isdisjoint(found)
    assert "containerd.service" in found["Before"][0].split()
    assert found["KillMode"] == ["mixed"]
    assert found["RuntimeDirectory"] == ["lazyfs"]
    assert found["RuntimeDirectoryPreserve"] == ["yes"]
    assert "CAP_SYS_ADMIN" in found["CapabilityBoundingSet"][0].split()
    assert len(UNITS) == 2


def test_the_daemons_unit_keeps_its_descriptors(tmp_path: Path) -> None:
    """Started as the unit says, under a service manager of ours: it is ready and hands over descriptors."""
    found = settings_of(DEPLOY / "systemd/lazyfs-daemon.service")
    assert (found["Type"], found["NotifyAccess"]) == (["notify"], ["main"])
    assert int(found["FileDescriptorStoreMax"][0]) >= 8
    words = shlex.split(found["ExecStart"][0])
    places = {"/var/lib/lazyfs": "lib", "/run/lazyfs/daemon.sock": "d.sock", "/var/cache/lazyfs": "cache"}
    words = [executable(), *(str(tmp_path / places[word]) if word in places else word for word in words[1:])]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "PATH": os.environ["PATH"]}
        with subprocess.Popen(words, env=environment, stderr=subprocess.PIPE) as process:
            try:
                told = b""
                stored = 0
                while b"READY=1" not in told:
                    data, descriptors, _, _ = socket.recv_fds(manager, 4096, 8)
                    told += data
                    stored += len(descriptors)
                    for descriptor in descriptors:
                        os.close(descriptor)
                assert (tmp_path / "d.sock").is_socket()
                assert stored >= 1
                assert b"FDSTORE=1" in told
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(timeout=30)
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if f" {tmp_path}/" in line:
            subprocess.run(["umount", "--lazy", line.split()[4]], check=True)


@pytest.mark.parametrize("version", SUITES)
def test_containerd_accepts_its_snippet(version: str, lab, tmp_path: Path) -> None:
    programs = release(lab, version).programs
    machine = Machine(Path("/"), os.geteuid(), str(programs))
    text = (DEPLOY / "containerd" / SNIPPETS[version]).read_text()
    file = tmp_path / "config.toml"
    with ExitStack() as stack:
        for name in ("snapshotter.sock", "containerd.sock"):
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(tmp_path / name))
            listener.listen()
        file.write_text(text.replace("/run/lazyfs/snapshotter.sock", str(tmp_path / "snapshotter.sock")))
        found = list(check_containerd(machine, file, tmp_path / "containerd.sock"))
    assert {finding.state for finding in found} == {State.OK}, found
    assert found[0].fact.startswith(version)
    assert len(found) == (5 if version < "2" else 8)
    dump = subprocess.run(
        [programs / "containerd", "--config", file, "config", "dump"],
        capture_output=True,
        check=True,
        text=True,
    )
    assert "lazyfs" in tomllib.loads(dump.stdout)["proxy_plugins"]


@pytest.mark.parametrize("name", sorted(set(SNIPPETS.values())))
def test_the_page_has_the_snippets(name: str) -> None:
    snippet = tomllib.loads((DEPLOY / "containerd" / name).read_text())
    assert snippet == documented(snippet["version"])


def test_dockers_file_is_json() -> None:
    found = json.loads((DEPLOY / "docker/daemon.json").read_text())
    assert found == {"features": {"containerd-snapshotter": True}, "storage-driver": "lazyfs"}


def test_the_daemon_set_is_whole() -> None:
    """Names, labels, mounts and volumes fit together, and mounts of the daemon reach the host."""
    kinds = [found["kind"] for found in manifests()]
    assert kinds == ["Namespace", "ConfigMap", "DaemonSet", "DaemonSet"]
    namespace = manifests()[0]["metadata"]["name"]
    for found in manifests()[1:]:
        assert found["metadata"]["namespace"] == namespace
    for found in daemon_sets().values():
        pod = found["spec"]["template"]
        assert found["spec"]["selector"]["matchLabels"] == pod["metadata"]["labels"]
        volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
        (container,) = pod["spec"]["containers"]
        mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
        assert mounts.keys() == volumes
        assert container["securityContext"] == {"privileged": True}
        assert mounts["state"]["mountPropagation"] == "Bidirectional"
        reachable = [mount["mountPath"] for mount in mounts.values()]
        for word in container["args"][1:]:
            path = word.partition("=")[2]
            assert any(path == place or path.startswith(place + "/") for place in reachable), word


def test_the_config_map_is_a_configuration(tmp_path: Path) -> None:
    text = manifests()[1]["data"]["config.toml"]
    (tmp_path / "config.toml").write_text(text)
    config = load_config({"HOME": "/"}, {}, tmp_path / "config.toml")
    assert config.cache_quota_mib > 0
    mounted = daemon_sets()["lazyfs-daemon"]["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert str(config.cache_dir) in {mount["mountPath"] for mount in mounted}


def test_the_containerfile_copies_what_is_there_and_names_packages_of_debian() -> None:
    text = (DEPLOY / "Containerfile").read_text().replace("\\\n", " ")
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE)
    for name in " ".join(copied).split():
        assert (DEPLOY.parent / name).exists(), name
    packages = {
        word
        for line in re.findall(r"--no-install-recommends\s+([a-z0-9 .+-]+)", text)
        for word in line.split()
    }
    assert {"fuse3", "libfuse3-3", "python3", "gcc"} <= packages
    known = subprocess.run(
        ["apt-cache", "--names-only", "search", "."], capture_output=True, check=True, text=True
    ).stdout
    assert shutil.which("apt-cache")
    assert packages <= {line.split(" ", 1)[0] for line in known.splitlines()}
