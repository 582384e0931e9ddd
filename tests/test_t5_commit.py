"""lazyfs commit: what containers of real images changed, as images that others unpack and that run again."""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lazyfs.removal import remove_tree
from tests.support.containers import Containers, until
from tests.support.deep_trees import make_deep
from tests.support.lab_registry import docker_registry
from tests.support.oracle import compare_trees
from tests.support.runner import LazyfsRunner

# Not of the tree: what a runtime mounts, and the empty files and directories it does that on.
MOUNTED = (b"proc", b"sys", b"dev", b"etc/hosts", b"etc/hostname", b"etc/resolv.conf")


@pytest.fixture(scope="module")
def containers(tmp_path_factory) -> Containers:
    """One cache for all."""
    top = tmp_path_factory.mktemp("commit")
    return Containers(LazyfsRunner(home=top / "home", cache_dir=top / "cache"))


@pytest.fixture(scope="module")
def image(lab_image):
    """From a name to an image's name."""
    return lambda name: f"oci:{lab_image(name)}:latest"


@pytest.fixture(scope="module")
def own_registry(tmp_path_factory) -> Iterator[str]:
    """The address of a registry that can be written."""
    with docker_registry(tmp_path_factory.mktemp("registry")) as address:
        yield address


@pytest.fixture
def shm() -> Iterator[Path]:
    """A directory in memory: unmounting an overlay whose changes last syncs all of their file system."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


CHANGES = """
set -e
rm /etc/passwd- && rm -rf /etc/apt && mkdir /etc/apt && echo new > /etc/apt/file
rm -rf /usr/share/zoneinfo && echo no > /usr/share/zoneinfo
rm /etc/issue && mkdir /etc/issue && echo below > /etc/issue/below
mkdir -p /srv/a/b && echo x > /srv/a/one && ln /srv/a/one /srv/a/b/two && ln -s ../one /srv/a/b/link
mkfifo /srv/a/fifo && mknod /srv/a/null c 1 3 && truncate -s 9M /srv/a/sparse && printf end >> /srv/a/sparse
chmod 4711 /srv/a/one && chown 12:34 /srv/a && chmod 1777 /srv/a/b
touch -d '2001-02-03 04:05:06.789' /srv/a
mv /usr/share/base-files /usr/share/moved && chmod 700 /home && echo >> /etc/hosts
touch "/srv/$(printf 'odd\\377name')" && touch /srv/$(printf '%0200d' 7)
"""


def tree_differences(containers: Containers, layout: Path, tag: str, kept: Path, image: str, scratch: Path):
    """How the tree that umoci unpacks of an image differs from that of a running container."""
    with containers.started("--name", "shown", "--upper", kept, image, "sleep", "1000"):
        running = Path(f"/proc/{containers.pid('shown')}/root")
        until((running / "proc/1").exists, "the container is up")
        command = ["umoci", "unpack", "--image", f"{layout}:{tag}", str(scratch)]
        subprocess.run(command, check=True, capture_output=True)
        return compare_trees(running, scratch / "rootfs", without=MOUNTED)


@pytest.mark.parametrize(("compression", "driver"), [("gzip", "erofs"), ("zstd", "fuse")])
def test_what_umoci_unpacks_is_the_tree_that_ran(containers, image, shm, tmp_path, compression, driver):
    base, kept, out = image("python"), shm / "kept", tmp_path / "out"
    containers("run", "--driver", driver, "--upper", kept, base, "sh", "-c", CHANGES)
    containers(
        "commit", kept, f"oci:{out}:new", "--compression", compression, "-c", 'CMD ["cat", "/srv/a/b/two"]'
    )
    if compression == "gzip":  # umoci knows no zstd
        assert tree_differences(containers, out, "new", kept, base, tmp_path / "unpacked") == []
    assert containers("run", "--driver", driver, f"oci:{out}:new").stdout == "x\n"
    mount_point = tmp_path / "mnt"
    mount_point.mkdir()
    containers("mount", "--driver", driver, f"oci:{out}:new", mount_point)
    try:
        with containers.started("--name", "again", "--upper", kept, base, "sleep", "1000"):
            running = Path(f"/proc/{containers.pid('again')}/root")
            until((running / "proc/1").exists, "the container is up")
            assert compare_trees(running, mount_point, without=MOUNTED) == []
    finally:
        containers("umount", mount_point)


def test_a_database_travels_as_an_image(containers, image, registry, own_registry, shm, tmp_path):
    """initdb in a container, committed to a registry with its index; started from there with a new cache."""
    base, kept, target = registry.reference("postgres"), shm / "kept", f"{own_registry}/team/db:1"
    initialise = "initdb --no-sync -D /srv/data/db >/dev/null && echo kept > /srv/data/mark"
    containers("run", "--upper", kept, base, "sh", "-c", initialise)
    made = json.loads(containers("commit", kept, target, "--push-index", "-m", "a database", "--json").stdout)
    assert made["published"]["new"]
    elsewhere = Containers(LazyfsRunner(home=tmp_path / "home", cache_dir=tmp_path / "cache"))
    start = """
    cat /srv/data/mark &&
    pg_ctl -w -s -D /srv/data/db -o "-k /tmp -c listen_addresses= -c fsync=off" -l /tmp/log start &&
    psql -h /tmp -d postgres -Atc 'select 40 + 2' && pg_ctl -w -s -m immediate -D /srv/data/db stop
    """
    done = elsewhere(
        "run", "--net", "none", f"{target.rpartition(':')[0]}@{made['digest']}", "sh", "-c", start
    )
    assert done.stdout == "kept\n42\n"
    described = json.loads(elsewhere("inspect", "--json", target).stdout)
    assert described["indexed"]
    assert described["config"]["history"][-1]["comment"] == "a database"
    assert [layer["digest"] for layer in described["layers"]][-1] == made["layer"]


def test_layers_are_mounted_or_copied_between_repositories(containers, image, own_registry, shm, tmp_path):
    """The second commit, beside the first, sends the new layer alone; skopeo reads both."""
    kept, first, second = shm / "kept", f"{own_registry}/one:1", f"{own_registry}/two:1"
    containers("run", "--upper", kept, image("base"), "sh", "-c", "echo 1 > /one")
    containers("commit", kept, first)
    containers("run", "--upper", shm / "more", first, "sh", "-c", "cat /one > /two")
    containers("commit", shm / "more", second)
    for target, layers in ((first, 4), (second, 5)):
        command = ["skopeo", "inspect", "--tls-verify=false", f"docker://{target}"]
        done = subprocess.run(command, check=True, capture_output=True)
        assert len(json.loads(done.stdout)["Layers"]) == layers
    assert containers("run", second, "cat", "/two").stdout == "1\n"


def test_a_running_container_is_committed_by_its_name(containers, image, tmp_path):
    script = "echo early > /file; while :; do date > /busy; done"
    with containers.started("--name", "busy", image("base"), "sh", "-c", script) as process:
        pid = containers.pid("busy")
        until(lambda: Path(f"/proc/{pid}/root/busy").exists(), "it has begun")
        containers("commit", "busy", f"oci:{tmp_path / 'out'}:1")
        assert process.poll() is None
    assert containers("run", f"oci:{tmp_path / 'out'}:1", "cat", "/file").stdout == "early\n"


PAUSING = """
import sys
from pathlib import Path
from lazyfs.container.places import ContainerPlace

place = ContainerPlace(Path(sys.argv[1]))
with place.runtime().paused(place.facts.identifier):
    print("paused", flush=True)
    sys.stdin.read()
"""


def test_a_container_that_is_paused_goes_on_whatever_becomes_of_who_paused_it(containers, image):
    with containers.started("--name", "busy", image("base"), "sh", "-c", "while :; do date > /busy; done"):
        root = Path(f"/proc/{containers.pid('busy')}/root")
        until((root / "busy").exists, "it has begun")
        command = [sys.executable, "-c", PAUSING, containers.places / "busy"]
        for end in (subprocess.Popen.kill, lambda process: process.stdin.close()):
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
                assert process.stdout.readline() == b"paused\n"
                written = (root / "busy").stat().st_mtime_ns
                assert (root / "busy").stat().st_mtime_ns == written
                end(process)
                until(lambda since=written: (root / "busy").stat().st_mtime_ns > since, "it goes on")


@pytest.fixture
def telling_runtime(tmp_path) -> Path:
    """A runtime that writes down that it paused; it fails to while there is a file `refusing` beside it."""
    program = tmp_path / "runc"
    program.write_text(
        f"""#!/bin/sh
case "$*" in *" pause "*) echo pause >> {tmp_path}/told; [ ! -e {tmp_path}/refusing ] || exit 1;; esac
exec {shutil.which("runc", path="/usr/sbin:/usr/bin:/sbin")} "$@"
"""
    )
    program.chmod(0o755)
    return program


def test_whose_changes_are_committed_does_nothing_meanwhile_or_a_warning_says_so(
    containers, image, telling_runtime, shm, tmp_path
):
    kept, target, told = shm / "kept", f"oci:{tmp_path / 'out'}:1", tmp_path / "told"
    words = ("--runtime", telling_runtime, "--name", "on", "--upper", kept, image("base"), "sleep", "1000")
    with containers.started(*words):
        containers.pid("on")
        assert containers("commit", kept, target).stderr == ""
        assert told.read_text() == "pause\n"
        (tmp_path / "refusing").touch()
        for named in (kept, "on"):
            assert "lazyfs: the container cannot be paused" in containers("commit", named, target).stderr
        elsewhere = Containers(LazyfsRunner(containers.runner.home, tmp_path / "other-cache"))
        assert (
            f"lazyfs: {kept}: a container of another cache uses it"
            in elsewhere("commit", kept, target).stderr
        )
    until(lambda: not containers.left(), "it has gone")
    assert containers("commit", kept, target).stderr == ""


def test_changes_of_another_kind_of_user_are_not_taken_for_ours(containers, image, shm, tmp_path):
    """Their owners and marks would be read as something else."""
    kept = shm / "kept"
    containers("run", "--upper", kept, image("base"), "rm", "/etc/issue")
    facts = json.loads((kept / "container.json").read_text())
    (kept / "container.json").write_text(json.dumps(facts | {"user_namespace": True}))
    done = containers("commit", kept, f"oci:{tmp_path / 'out'}:1", exit_code=125)
    assert done.stderr == f"lazyfs: {kept} was made without root, and can only be used so\n"


def test_directories_too_deep_for_a_layer_are_told_in_a_line(containers, image, shm, tmp_path):
    kept = shm / "kept"
    containers("run", "--upper", kept, image("base"), "true")
    make_deep(kept / "upper", 3000)
    done = containers("commit", kept, f"oci:{tmp_path / 'out'}:1", exit_code=125)
    assert re.fullmatch(r"lazyfs: /(d/)+\.\.\.: this is too deep for a layer\n", done.stderr)
    remove_tree(kept)


def test_the_same_changes_give_the_same_image_and_tags_move(containers, image, shm, tmp_path):
    kept, out, env = shm / "kept", tmp_path / "out", {"SOURCE_DATE_EPOCH": "1700000000"}
    containers("run", "--upper", kept, image("base"), "sh", "-c", "echo 1 > /one")
    digests = {containers("commit", kept, f"oci:{out}:{tag}", env=env).stdout for tag in "aab"}
    assert len(digests) == 1
    containers("commit", kept, f"oci:{out}:a", "-c", "USER nobody")
    index = json.loads((out / "index.json").read_text())
    assert [link["annotations"]["org.opencontainers.image.ref.name"] for link in index["manifests"]] == [
        "b",
        "a",
    ]
    assert containers("run", f"oci:{out}:a", "id", "-un").stdout == "nobody\n"
    assert containers("run", f"oci:{out}:b", "id", "-un").stdout == "root\n"


def test_an_upper_directory_of_ones_own_is_committed_with_its_image(containers, image, tmp_path):
    upper = tmp_path / "upper"
    upper.mkdir()
    (upper / "own").write_text("mine\n")
    containers("commit", upper, f"oci:{tmp_path / 'out'}:1", "--image", image("base"))
    assert containers("run", f"oci:{tmp_path / 'out'}:1", "cat", "/own").stdout == "mine\n"


def test_what_cannot_be_committed_is_said_in_a_line(containers, image, shm, tmp_path):
    kept = shm / "kept"
    containers("run", "--upper", kept, image("base"), "true")
    for words, code in (
        ([tmp_path / "absent", f"oci:{tmp_path}/out:1"], 125),
        ([kept, f"oci:{tmp_path}/out:1", "-c", "RUN x"], 125),
        ([kept, f"oci-archive:{tmp_path}/out.tar"], 64),
        ([kept, "127.0.0.1:1/app:1"], 75),
    ):
        done = containers("commit", *words, exit_code=code, env={"LAZYFS_RETRIES": "0"})
        assert len(done.stderr.splitlines()) == 1, done.stderr
    assert not (tmp_path / "out").exists()


def test_who_commits_the_upper_directory_of_another_overlay_is_told_of_the_image(containers, tmp_path):
    (tmp_path / "upper").mkdir()
    (tmp_path / "upper/file").touch()
    done = containers("commit", tmp_path / "upper", f"oci:{tmp_path}/out", exit_code=125)
    assert "name the image below with --image" in done.stderr
