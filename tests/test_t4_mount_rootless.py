"""The fuse driver for an ordinary user, through fusermount3.

A mount namespace of its own holds a /dev/fuse that anybody may open, as most machines have it, or root alone.
The user has one capability, to read what lies below root's home (the interpreter may), and none to mount.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lazyfs.mount.fuse_mount import MountOptions, fusermount_options
from tests.support.mount_server import PATIENCE_S, Server, directory, file, mounted, started, write_image

NOBODY = "65534"
UNPRIVILEGED = [
    *["setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"],
    *["--inh-caps", "-all,+dac_read_search", "--ambient-caps", "+dac_read_search"],
]
IN_NAMESPACE = ["unshare", "--mount", "--propagation", "private", "sh", "-c"]
DEVICE = """
mount -t tmpfs devices "$0" && mknod -m {mode} "$0/fuse" c 10 229 && mount --bind "$0/fuse" /dev/fuse || exit
exec "$@"
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that the user and so fusermount3 can reach; `tmp_path` is root's."""
    with tempfile.TemporaryDirectory(prefix="lazyfs-") as name:
        place = Path(name)
        place.chmod(0o755)
        for part in ("devices", "mnt"):
            (place / part).mkdir()
        os.chown(place / "mnt", int(NOBODY), int(NOBODY))
        yield place


def prefix(place: Path, *, mode: str = "0666") -> list[str]:
    return [*IN_NAMESPACE, DEVICE.format(mode=mode), str(place / "devices"), *UNPRIVILEGED]


@pytest.fixture
def image(tmp_path):
    return write_image(
        tmp_path / "image",
        [
            [
                directory(b"d", uid=0),
                file(b"d/mine", b"1", uid=65534, mode=0o600),
                file(b"roots", b"2", mode=0o600),
            ]
        ],
    )


def inside(server: Server, *command: str) -> subprocess.CompletedProcess:
    """Runs in the server's mount namespace, as the same user."""
    enter = ["nsenter", "--mount", "--target", str(server.process.pid)]
    return subprocess.run([*enter, *command], capture_output=True, text=True, check=False)


def test_a_user_mounts_and_unmounts_with_fusermount3(place, image):
    with mounted(image, place / "mnt", prefix=prefix(place)) as server:
        line = inside(server, "grep", "lazyfs", "/proc/self/mountinfo").stdout
        assert " - fuse.lazyfs lazyfs:example.org/image:1 ro,user_id=65534,group_id=65534" in line
        assert "nosuid,nodev" in line
        path = str(place / "mnt/d/mine")
        assert inside(server, *UNPRIVILEGED, "cat", path).stdout == "1"
        assert (
            inside(server, *UNPRIVILEGED, "stat", "-c", "%u %i", str(place / "mnt/roots")).stdout[:2] == "0 "
        )
        assert "Permission denied" in inside(server, "cat", path).stderr  # root is another user
        assert server.terminate() == 0
        assert "WARNING" not in server.logged


def test_a_mount_ends_when_its_user_unmounts_it(place, image):
    with mounted(image, place / "mnt", prefix=prefix(place)) as server:
        done = inside(server, *UNPRIVILEGED, "fusermount3", "-u", str(place / "mnt"))
        assert (done.returncode, done.stderr) == (0, "")
        assert server.process.wait(PATIENCE_S) == 0


def test_what_fusermount3_refuses_is_said_in_its_words(place, image):
    os.chown(place / "mnt", 0, 0)
    with started(image, place / "mnt", prefix=prefix(place)) as server:
        said = server.said()
        assert said.startswith("MountError: fusermount3 cannot mount on ")
        assert "user has no write access to mountpoint" in said


@pytest.mark.parametrize("wish", ["setuid", "devices"])
def test_what_fusermount3_would_quietly_leave_out_is_refused(place, image, wish):
    with started(image, place / "mnt", prefix=prefix(place), **{wish: True}) as server:
        assert server.said().endswith("count in root's mounts alone: leave --suid and --dev out")


def test_a_closed_device_and_a_missing_helper_come_with_advice(place, image):
    with started(image, place / "mnt", prefix=prefix(place, mode="0600")) as server:
        assert server.said() == (
            "MountError: cannot open /dev/fuse: Permission denied: "
            "its mode must let you open it (usually 0666), or be root"
        )
    nothing = [*prefix(place), "env", f"PATH={place}", "/usr/bin/env"]
    with started(image, place / "mnt", prefix=nothing) as server:
        assert server.said().endswith("fusermount3: install the package fuse3")


def test_a_missing_device_comes_with_advice(tmp_path, image):
    hide = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        'mount -t tmpfs none /dev; exec "$@"',
        "-",
    ]
    with started(image, tmp_path / "mnt", prefix=hide) as server:
        assert server.said() == (
            "MountError: cannot open /dev/fuse: No such file or directory: "
            "load the module (modprobe fuse), or give the container the device (--device /dev/fuse)"
        )


def test_what_fusermount3_says_of_a_name_of_any_bytes_can_be_told(place):
    """Of a mount that is not the user's: its message has the name as it is."""
    name = place / "\udcff"
    name.mkdir()
    program = (
        "import sys; from pathlib import Path; from lazyfs.errors import MountError\n"
        "from lazyfs.mount.mounts import unmount\n"
        "try: unmount(Path(sys.argv[1]))\n"
        "except MountError as error: print(ascii(str(error)))"
    )
    mount = 'mount -t tmpfs test "$0" && exec "$@"'
    done = subprocess.run(
        [*IN_NAMESPACE, mount, name, *UNPRIVILEGED, sys.executable, "-c", program, name],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "cannot unmount" in done.stdout


def test_an_odd_image_name_is_one_option_to_fusermount3():
    options = MountOptions("a,dev\\,suid")
    assert fusermount_options(options) == (
        b"ro,default_permissions,subtype=lazyfs,fsname=lazyfs:a\\,dev\\\\\\,suid"
    )
