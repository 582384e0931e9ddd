"""lazyfs run and commit for an ordinary user, who may open /dev/fuse and make user namespaces."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.containers import until
from tests.support.runner import TIMEOUT_S, executable

NOBODY = 65534
PRIVATELY = ("unshare", "--mount", "--propagation", "private", "sh", "-c")
# A mount namespace with an open /dev/fuse, with ranges of ids if `sub` says any, and with an interpreter that
# others than root can reach wherever it is installed.
PREPARE = """
cd "$0"
mount -t tmpfs devices devices && mknod -m "$DEVICE_MODE" devices/fuse c 10 229 &&
mount --bind devices/fuse /dev/fuse && mount --bind sub /etc/subuid && mount --bind sub /etc/subgid || exit
if ! setpriv --reuid 65534 --clear-groups test -x "$PYTHON"; then
  mount --bind "$PYTHON" python && mount -t tmpfs -o mode=755 closed "/$(echo "$PYTHON" | cut -d/ -f2)" &&
  mkdir -p "$PYTHON" && mount --bind python "$PYTHON" || exit
fi
exec setpriv --reuid 65534 --regid 65534 --clear-groups "$@"
"""


@dataclass(frozen=True, slots=True)
class User:
    """Runs lazyfs as nobody.

    Attributes:
        place: a directory that nobody can reach, with a home and an image.
    """

    place: Path

    def __call__(
        self, *words: str, exit_code: int = 0, device_mode: str = "0666"
    ) -> subprocess.CompletedProcess[str]:
        """What `lazyfs WORDS` said."""
        home = self.place / "home"
        own = {"HOME": str(home), "LAZYFS_RUNTIME_DIR": f"{home}/run", "LAZYFS_HOSTS_DIR": "/dev/null"}
        done = subprocess.run(
            [*PRIVATELY, PREPARE, str(self.place), executable(), *words],
            env={"PATH": os.environ["PATH"], "PYTHON": sys.base_prefix, "DEVICE_MODE": device_mode, **own},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )
        assert done.returncode == exit_code, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def give_ids(self, lines: str) -> None:
        """Let the user have these ranges."""
        (self.place / "sub").write_text(lines)

    @property
    def image(self) -> str:
        """The image's name."""
        return f"oci:{self.place}/image:latest"


@pytest.fixture(scope="module")
def user(lab_image) -> Iterator[User]:
    with tempfile.TemporaryDirectory(prefix="lazyfs-") as name:
        place = Path(name)
        place.chmod(0o755)
        for part in ("devices", "python", "home"):
            (place / part).mkdir()
        os.chown(place / "home", NOBODY, NOBODY)
        shutil.copytree(lab_image("postgres"), place / "image")
        subprocess.run(["chmod", "-R", "a+rX", str(place / "image")], check=True)
        made = User(place)
        made.give_ids("")
        yield made


def test_without_ranges_root_alone_is_there(user):
    user.give_ids("")
    script = "id -u; cat /proc/self/uid_map; echo 1 > /new; ls /new"
    done = user("run", "--user", "0", "-w", "/", user.image, "sh", "-c", script)
    assert done.stdout.split() == ["0", "0", "65534", "1", "/new"]
    refused = user("run", user.image, "id", exit_code=125)
    assert refused.stderr.startswith("lazyfs: no uid of this machine stands behind ")
    assert len(refused.stderr.splitlines()) == 1


def test_memory_and_devices_are_given_without_root_too(user):
    user.give_ids("")
    script = "stat -f -c %b /dev/shm /scratch; echo 1 >/scratch/file && head -c 3 /dev/mine | wc -c"
    options = ("--shm-size", "1m", "--tmpfs", "/scratch:size=2m", "--device", "/dev/zero:/dev/mine")
    done = user("run", "--user", "0", "-w", "/", *options, user.image, "sh", "-c", script)
    assert done.stdout.split() == ["256", "512", "3"]


def test_with_ranges_all_users_of_an_image_work_and_changes_are_committed(user, tmp_path):
    user.give_ids("65534:100000:65536\n")
    kept, out = f"{user.place}/home/kept", f"{user.place}/home/out"
    script = "id -un; initdb --no-sync -D db > /dev/null && rm -r db/base && mkdir own"
    assert (
        user("run", "--upper", kept, "--net", "none", user.image, "sh", "-c", script).stdout == "postgres\n"
    )
    script = "rm -rf /etc/apt /etc/passwd- && mkdir /etc/apt && touch /etc/apt/file"
    user("run", "--upper", kept, "--user", "0", user.image, "sh", "-c", script)
    user("commit", kept, f"oci:{out}:1")
    command = ["umoci", "unpack", "--image", f"{out}:1", str(tmp_path / "bundle")]
    subprocess.run(command, check=True, capture_output=True)
    root = tmp_path / "bundle/rootfs"
    assert [path.name for path in (root / "etc/apt").iterdir()] == ["file"]
    assert not (root / "etc/passwd-").exists()
    assert not (root / "srv/data/db/base").exists()
    assert (root / "srv/data/own").stat().st_uid == (root / "var/lib/postgresql").stat().st_uid
    assert (root / "etc/apt/file").stat().st_uid == 0


def test_one_more_process_joins_a_container(user):
    user.give_ids("")
    script = "trap 'exit 7' TERM; echo > /up; while :; do sleep 0.1; done"
    first = ["run", "--name", "box", "--user", "0", "-w", "/", user.image, "sh", "-c", script]
    with ThreadPoolExecutor() as threads:
        running = threads.submit(user, *first, exit_code=7)
        started = user.place / "home/.cache/lazyfs/containers/box/bundle/pid"
        until(lambda: started.exists() and started.read_text() != "", "the container starts")
        up = Path(f"/proc/{started.read_text()}/root/up")
        until(up.exists, "it would hear a signal")
        try:
            probe = "id -u; cat /proc/self/uid_map; readlink /proc/1/exe; grep Seccomp: /proc/self/status"
            done = user("exec", "box", "sh", "-c", probe)
        finally:
            os.kill(int(started.read_text()), signal.SIGTERM)
        running.result()
    words = done.stdout.split()
    assert (words[:4], words[5:]) == (["0", "0", "65534", "1"], ["Seccomp:", "2"])


def test_nothing_is_left(user):
    user("run", "--user", "0", "-w", "/", user.image, "true")
    assert list((user.place / "home/.cache/lazyfs/containers").iterdir()) == []


def test_a_closed_device_is_said_in_a_line(user):
    done = user("run", user.image, "id", exit_code=71, device_mode="0600")
    assert done.stderr == (
        "lazyfs: cannot open /dev/fuse: Permission denied: "
        "its mode must let you open it (usually 0666), or be root\n"
    )
