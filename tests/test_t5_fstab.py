"""mount(8) and /etc/fstab: mount.lazyfs stands in the /sbin of a mount namespace of the test's own."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.containers import until
from tests.support.systemd import running_systemd

PATIENCE_S = 30
HELPER = Path(sys.executable).with_name("mount.lazyfs")
OVERLAY = ("mount", "-t", "overlay", "sbin", "-o")
NAMESPACE = '"$@" && echo ready && exec sleep infinity'
Run = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def helpers(tmp_path: Path) -> Path:
    """A directory to be laid over /sbin."""
    helpers = tmp_path / "helpers"
    helpers.mkdir()
    (helpers / "mount.lazyfs").symlink_to(HELPER)
    return helpers


@pytest.fixture
def run(lazyfs, helpers: Path) -> Iterator[Run]:
    """Runs a command where mount(8) finds the helper."""
    unshare = ["unshare", "--mount", "--propagation", "private", "sh", "-c", NAMESPACE, "-"]
    unshare += [*OVERLAY, f"lowerdir={helpers}:/usr/sbin", "/usr/sbin"]
    environment = lazyfs.environment() | {"LAZYFS_CACHE_DIR": str(lazyfs.cache_dir)}
    with subprocess.Popen(unshare, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "ready\n"

        def run(*command: str | Path, exit_code: int = 0) -> subprocess.CompletedProcess:
            enter = ["nsenter", "--mount", "--target", str(holder.pid), "--", *map(str, command)]
            done = subprocess.run(
                enter, capture_output=True, text=True, check=False, env=environment, timeout=PATIENCE_S
            )
            assert done.returncode == exit_code, done.stdout + done.stderr
            return done

        yield run
        holder.kill()


@pytest.fixture
def point(tmp_path: Path) -> Path:
    point = tmp_path / "mnt"
    point.mkdir()
    return point


def wait_until_over(lazyfs) -> None:
    """The daemon ends by itself, having made durable what it fetched, and takes its state away."""
    until(lambda: not list((lazyfs.home / "run").iterdir()), "the state is taken away")


@pytest.mark.parametrize("driver", ["erofs", "fuse"])
def test_a_line_of_fstab_is_mounted_and_umount_leaves_nothing(
    driver, run, lazyfs, lab_image, point, tmp_path
):
    fstab = tmp_path / "fstab"
    options = f"nofail,_netdev,x-systemd.automount,noexec,driver={driver},read_timeout=20"
    fstab.write_text(f"oci:{lab_image('base')} {point} lazyfs {options} 0 0\n")
    run("mount", "--fstab", fstab, point)
    try:
        run("mount", "--fstab", fstab, "--all", "-O", "_netdev")  # as the network comes; it is there
        assert run("cat", point / "etc/passwd").stdout.startswith("root:")
        assert "Permission denied" in run(point / "bin/true", exit_code=126).stderr
        shown = run("findmnt", "--noheadings", "--output", "OPTIONS", point).stdout
        assert {"ro", "nosuid", "nodev", "noexec"} <= set(shown.strip().split(","))
    finally:
        run("umount", point)
    wait_until_over(lazyfs)


def test_setuid_bits_and_devices_count_where_that_is_said(run, lab_image, point):
    run("mount", "-t", "lazyfs", f"oci:{lab_image('base')}", point, "-o", "allow_suid,allow_dev,noexec")
    shown = run("findmnt", "--noheadings", "--output", "OPTIONS", point).stdout.strip().split(",")
    run("umount", point)
    assert {"nosuid", "nodev", "noexec"} & set(shown) == {"noexec"}


def test_what_fails_is_told_with_a_code_of_mounts_own(run, lab_image, point):
    def mount(*arguments: str | Path, exit_code: int) -> str:
        return run("mount", "-t", "lazyfs", *arguments, exit_code=exit_code).stderr

    image = f"oci:{lab_image('base')}"
    assert "no image 'absent'" in mount(f"{image}:absent", point, exit_code=32)
    assert "no mount option 'drive'" in mount(image, point, "-o", "drive=fuse", exit_code=1)
    assert "'--driver'" in mount(image, point, "-o", "driver=ext4", exit_code=1)
    options = "allow_dev,allow_suid,drive=fuse,nodev"
    said = mount(image, point, "-f", "-v", "-s", "-o", options, exit_code=0)
    assert f"running lazyfs mount --suid -- {image} {point}\n" in said


UNIT = """
[Unit]
DefaultDependencies=no
[Mount]
What={image}
Where={point}
Type=lazyfs
Options=driver={driver},cache-dir=/var/cache/lazyfs
"""
AUTOMOUNT = """
[Unit]
DefaultDependencies=no
[Automount]
Where={point}
TimeoutIdleSec=1
"""


@pytest.mark.parametrize("driver", ["erofs", "fuse"])
def test_systemd_mounts_an_image_when_its_directory_is_entered_and_unmounts_it_idle(
    driver, lab_image, tmp_path, point, helpers
):
    name = point.as_posix().lstrip("/").replace("-", r"\x2d").replace("/", "-")
    names = {"image": f"oci:{lab_image('base')}", "point": point, "driver": driver}
    units = {f"{name}.mount": UNIT.format(**names), f"{name}.automount": AUTOMOUNT.format(**names)}
    with running_systemd(tmp_path / "systemd", units) as systemd:
        subprocess.run([*systemd.within, *OVERLAY, f"lowerdir={helpers}:/usr/sbin", "/usr/sbin"], check=True)
        systemd.ctl("start", f"{name}.automount")
        read = [*systemd.within, "cat", str(point / "etc/passwd")]
        for _again in range(2):
            assert subprocess.run(read, capture_output=True, check=True).stdout.startswith(b"root:")
            assert systemd.facts(f"{name}.mount")["ActiveState"] == "active"
            until(lambda: systemd.facts(f"{name}.mount")["ActiveState"] == "inactive", "it is unmounted idle")
        until(lambda: not any(systemd.path("/run/lazyfs").iterdir()), "the state is taken away")
        systemd.ctl("stop", f"{name}.automount")
    shutil.rmtree(tmp_path / "systemd")
