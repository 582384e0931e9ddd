"""The doctor: each of its checks can fail, and says what to do; on a machine in order it finds no problem."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from lazyfs.config import Config
from lazyfs.doctor.disk import check_cache, check_limits
from lazyfs.doctor.kernel import (
    check_capabilities,
    check_erofs,
    check_fuse,
    check_kernel,
    check_overlay,
    try_erofs,
    try_fuse,
    try_overlay,
)
from lazyfs.doctor.runtimes import check_runtimes
from lazyfs.doctor.sockets import check_hosts, check_services, why_no_answer
from lazyfs.errors import MountError
from lazyfs.source.http.settings import SourceSettings
from tests.support.crash import small_disk
from tests.support.doctors import REAL, listening, machine_at, program, states
from tests.support.quick_runner import QuickRunner
from tests.support.runner import executable


@pytest.fixture
def quick(tmp_path: Path) -> QuickRunner:
    return QuickRunner(home=tmp_path / "home", cache_dir=tmp_path / "cache")


UNPRIVILEGED = {"/proc/self/status": "CapEff:\t0000000000000000\n", "/proc/self/uid_map": "0 1000 1\n"}
PRIVILEGED = {"/proc/self/status": "CapEff:\t000001ffffffffff\n", "/proc/self/uid_map": "0 0 4294967295\n"}


def test_this_machine_is_fit(quick) -> None:
    said = quick("doctor", "--json", "--containerd-socket", "/nowhere")
    found = json.loads(said.stdout)
    assert [finding for finding in found if finding["state"] == "problem"] == []
    by_name = {finding["name"]: finding for finding in found}
    for name in ("kernel", "FUSE", "EROFS", "overlayfs", "cache", "cache's files", "room"):
        assert by_name[name]["state"] == "ok", by_name[name]
    lines = quick("doctor").stdout.splitlines()
    assert sum(line.startswith(("ok ", "warning ")) for line in lines) == len(found)


def test_it_looks_where_the_services_are() -> None:
    from lazyfs.cli.doctor import doctor
    from lazyfs.cli.service import daemon
    from lazyfs.cli.snapshotter import snapshotter

    defaults = {param.name: param.default for param in doctor.params}
    for service in (daemon, snapshotter):
        (socket_option,) = (param for param in service.params if param.name == "socket")
        assert defaults[service.name] == socket_option.default


def test_a_problem_has_an_exit_code_and_an_advice(quick, tmp_path) -> None:
    (tmp_path / "cache").mkdir(mode=0o755)
    (tmp_path / "cache").chmod(0o755)
    said = quick("doctor", exit_code=69)
    assert "chmod 700" in said.stdout


def test_without_fuse_the_real_program_says_so(tmp_path) -> None:
    """In a mount namespace of its own, where /dev has nothing but null."""
    empty = tmp_path / "dev"
    empty.mkdir()
    (empty / "null").touch()
    script = (
        f"mount --bind /dev/null {empty}/null && mount --bind {empty} /dev && "
        f"exec {executable()} doctor --json --cache-dir {tmp_path}/cache"
    )
    done = subprocess.run(
        ["unshare", "-m", "--propagation", "private", "sh", "-c", script],
        capture_output=True,
        check=False,
        env=os.environ | {"HOME": str(tmp_path)},
    )
    assert done.returncode == 69, done
    fuse = {finding["name"]: finding for finding in json.loads(done.stdout)}["/dev/fuse"]
    assert fuse["state"] == "problem"
    assert "modprobe fuse" in fuse["advice"]


@pytest.mark.parametrize(
    ("release", "state"),
    [
        ("4.19.0-1", "problem"),
        ("5.10.0", "warning"),
        ("6.11.9", "warning"),
        ("6.12.0", "ok"),
        ("7.0-rc1", "ok"),
    ],
)
def test_the_kernel_must_be_new_enough(tmp_path, release, state) -> None:
    machine = machine_at(tmp_path, {"/proc/sys/kernel/osrelease": release + "\n"})
    assert states(check_kernel(machine)) == {"kernel": state}


def test_capabilities_count_in_the_initial_namespace_only(tmp_path) -> None:
    assert states(check_capabilities(machine_at(tmp_path / "a", PRIVILEGED))) == {"capabilities": "ok"}
    inner = PRIVILEGED | {"/proc/self/uid_map": UNPRIVILEGED["/proc/self/uid_map"]}
    for number, files in enumerate((UNPRIVILEGED, inner)):
        machine = machine_at(tmp_path / str(number), files)
        assert states(check_capabilities(machine)) == {"capabilities": "warning"}


def open_files() -> set[tuple[str, str]]:
    """Descriptors and what they are of; what an earlier test has left may be closed any moment."""
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # as of the descriptor that this list is read by
            found.add((link.name, str(link.readlink())))
    return {(name, target) for name, target in found if not target.endswith("/fd")}


def test_real_trials_work_here_and_leave_nothing(tmp_path) -> None:
    before = open_files()
    for trial in (try_fuse, try_erofs, try_overlay):
        assert trial(tmp_path)
    assert list(tmp_path.iterdir()) == []
    mounted = Path("/proc/self/mountinfo").read_text().splitlines()
    assert [mount for mount in mounted if str(tmp_path) in mount] == []  # tests beside this one have others
    assert open_files() - before == set()


def test_erofs_over_loop_devices_is_found_out(tmp_path) -> None:
    with small_disk(tmp_path / "disk", 1 << 20, "tmpfs") as disk:
        assert states(check_erofs(REAL, disk)) == {"EROFS": "warning"}
    assert states(check_erofs(REAL, tmp_path)) == {"EROFS": "ok"}


def refuse(_directory: Path) -> str:
    raise MountError("the kernel cannot mount it: No such device")


def test_trials_that_fail_are_told(tmp_path) -> None:
    assert states(check_erofs(REAL, tmp_path, refuse)) == {"EROFS": "warning"}
    assert states(check_overlay(REAL, tmp_path, refuse)) == {"overlayfs": "problem"}
    assert states(check_fuse(REAL, tmp_path, refuse)) == {"/dev/fuse": "ok", "FUSE": "problem"}
    assert states(check_overlay(REAL, tmp_path)) == {"overlayfs": "ok"}


def test_the_fuse_device_must_be_one(tmp_path) -> None:
    machine = machine_at(tmp_path, PRIVILEGED)
    assert states(check_fuse(machine, tmp_path)) == {"/dev/fuse": "problem"}
    machine = machine_at(tmp_path, {"/dev/fuse": ""})
    assert states(check_fuse(machine, tmp_path)) == {"/dev/fuse": "problem"}


def test_who_may_not_mount_needs_fusermount3(tmp_path) -> None:
    machine = machine_at(tmp_path, UNPRIVILEGED, uid=1000)
    (tmp_path / "dev").mkdir()
    os.mknod(tmp_path / "dev/fuse", 0o666 | 0o020000, os.makedev(10, 229))
    assert states(check_fuse(machine, tmp_path))["fusermount3"] == "problem"
    program(tmp_path, "fusermount3", "exit 0")
    assert states(check_fuse(machine, tmp_path))["fusermount3"] == "warning"
    (tmp_path / "bin/fusermount3").chmod(0o4755)
    assert states(check_fuse(machine, tmp_path)) == {"/dev/fuse": "ok", "fusermount3": "ok"}
    assert states(check_erofs(machine, tmp_path, refuse)) == {"EROFS": "ok"}
    assert states(check_overlay(machine, tmp_path, refuse)) == {"overlayfs": "warning"}


def config(path: Path, **values) -> Config:
    return Config(cache_dir=path, free_floor_mib=values.pop("free_floor_mib", 0), **values)


def test_the_cache_directory_must_be_ours_alone(tmp_path) -> None:
    place = tmp_path / "cache"
    assert states(check_cache(REAL, config(place)))["cache"] == "ok"
    place.mkdir(mode=0o700)
    assert states(check_cache(REAL, config(place)))["cache"] == "ok"
    place.chmod(0o750)
    assert states(check_cache(REAL, config(place)))["cache"] == "problem"
    place.chmod(0o700)
    os.chown(place, 12345, 12345)
    assert states(check_cache(REAL, config(place)))["cache"] == "problem"
    assert states(check_cache(REAL, config(Path("/proc/nowhere"))))["cache"] == "problem" or os.access(
        "/proc", os.W_OK
    )


def test_the_disk_of_the_cache_must_have_room_and_stay(tmp_path) -> None:
    with small_disk(tmp_path / "disk", 2 << 20, "tmpfs") as disk:
        found = states(check_cache(REAL, config(disk / "cache", free_floor_mib=1)))
        assert found["cache's file system"] == "warning"
        assert (found["room"], found["cache's files"]) == ("ok", "ok")
        assert states(check_cache(REAL, config(disk / "cache", free_floor_mib=3)))["room"] == "problem"
        with pytest.raises(OSError, match="space"):
            (disk / "ballast").write_bytes(bytes(4 << 20))
        assert states(check_cache(REAL, config(disk / "cache")))["cache's files"] == "problem"
        (disk / "ballast").unlink()
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        found = states(check_cache(REAL, config(disk)))
        assert found["cache's files"] == "warning"


def test_a_quota_that_is_passed_is_told(tmp_path) -> None:
    place = tmp_path / "cache"
    place.mkdir(mode=0o700)
    (place / "file").write_bytes(b"x" * (3 << 20))
    assert states(check_cache(REAL, config(place, cache_quota_mib=2)))["quota"] == "warning"
    assert states(check_cache(REAL, config(place, cache_quota_mib=9)))["quota"] == "ok"


def test_limits_of_the_process_count() -> None:
    assert set(states(check_limits()).values()) == {"ok"}
    code = (
        "import resource; from lazyfs.doctor.disk import check_limits\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "print([finding.state.value for finding in check_limits()])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout
    assert said.strip() == "['warning', 'warning']"
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 64


def test_runtimes_are_found_and_run(tmp_path) -> None:
    machine = machine_at(tmp_path)
    assert states(check_runtimes(machine)) == {"runtime": "warning"}
    program(tmp_path, "crun", "echo crun version 1.8")
    assert states(check_runtimes(machine)) == {"runtime": "ok"}
    program(tmp_path, "crun", "exit 3")
    assert states(check_runtimes(machine)) == {"runtime": "problem"}
    assert "ok" in states(check_runtimes(REAL)).values()


def test_podmans_file_of_mirrors_is_looked_at(tmp_path: Path) -> None:
    file = tmp_path / "registries.conf"
    file.write_text('[[registry]]\nlocation = "registry.example"')
    found = list(check_hosts(SourceSettings(registries_conf=file)))
    assert (found[0].state.value, found[0].fact) == ("ok", f"{file} is read")
    file.write_text("[[registry]]\nlocation = 1")
    found = list(check_hosts(SourceSettings(registries_conf=file)))
    assert found[0].state.value == "problem"
    assert "'location' is not a string" in found[0].fact


def test_mirrors_that_cannot_be_read_are_problems(tmp_path) -> None:
    assert states(check_hosts(SourceSettings(hosts_dir=tmp_path / "none"))) == {"mirrors": "ok"}
    for name in ("docker.io", "registry.example_5000_"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "hosts.toml").write_text('server = "https://mirror.example"\n')
    assert states(check_hosts(SourceSettings(hosts_dir=tmp_path))) == {"mirrors": "ok"}
    (tmp_path / "docker.io/hosts.toml").write_text("server = [")
    found = list(check_hosts(SourceSettings(hosts_dir=tmp_path)))
    assert states(found) == {"mirrors": "problem"}
    assert "docker.io" in found[0].fact


def test_services_must_answer_and_be_private(tmp_path) -> None:
    daemon, snapshotter = tmp_path / "d.sock", tmp_path / "s.sock"
    assert states(check_services(REAL, daemon, snapshotter)) == {"services": "ok"}
    with listening(daemon):
        found = states(check_services(REAL, daemon, snapshotter))
        assert found == {"lazyfs daemon": "ok", "lazyfs snapshotter": "problem"}
        with listening(snapshotter, 0o666):
            assert states(check_services(REAL, daemon, snapshotter))["lazyfs snapshotter"] == "problem"
    assert states(check_services(REAL, daemon, snapshotter))["lazyfs daemon"] == "problem"
    assert why_no_answer(tmp_path) == f"{tmp_path} is no socket"


@contextmanager
def ordinary_user() -> Iterator[None]:
    before = os.getresuid()
    os.setresuid(65534, 65534, -1)
    try:
        yield
    finally:
        os.setresuid(*before)


def test_what_an_ordinary_user_may_not_look_at_is_told_and_ends_nothing(tmp_path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with ordinary_user():
        services = states(check_services(REAL, closed / "d.sock", closed / "s.sock"))
        cache = states(check_cache(REAL, config(closed / "cache")))
        mirrors = states(check_hosts(SourceSettings(hosts_dir=closed / "certs.d")))
    assert (services, cache, mirrors) == (
        {"services": "warning"},
        {"cache": "problem"},
        {"mirrors": "problem"},
    )


def test_a_file_system_is_found_below_names_of_any_kind(tmp_path) -> None:
    lines = ["1 0 8:1 / / rw - ext4 /dev/sda rw", "2 1 0:40 / /mnt/d\\040\u00e9 rw - nfs4 server:/ rw"]
    machine = machine_at(tmp_path, {"/proc/self/mountinfo": "\n".join(lines) + "\n"})
    assert machine.file_system(Path("/mnt/d \u00e9/cache")) == "nfs4"
    assert machine.file_system(Path("/mnt/d")) == "ext4"
