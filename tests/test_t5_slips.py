"""What becomes of slips: words in the wrong place, outputs that end early or are full, too few rights."""

import json
import os
import platform
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.images import build_image, write_layout
from tests.support.runner import executable
from tests.support.tars import char, directory, file, tar

NOBODY = "65534"
CAPABILITY = bytes.fromhex("01000002") + bytes(16)  # of no bits
# An ordinary user, who may read what lies below root's home: the interpreter may.
UNPRIVILEGED = [
    *["setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"],
    *["--inh-caps", "-all,+dac_read_search", "--ambient-caps", "+dac_read_search"],
]


@pytest.fixture
def image(tmp_path) -> str:
    members = [
        directory(b"d"),
        file(b"d/large", bytes(1 << 20)),
        file(
            b"d/setuid",
            b"x",
            mode=0o4755,
            xattrs={b"security.capability": CAPABILITY},
        ),
        char(b"d/null", 1, 3),
    ]
    return f"oci:{write_layout(tmp_path / 'layout', {'latest': build_image([tar(*members)])})}"


def in_shell(lazyfs, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What bash makes of a script in which "$@" is lazyfs with these arguments."""
    words = ["bash", "-c", script, "bash", executable(), *arguments, "--cache-dir", str(lazyfs.cache_dir)]
    return subprocess.run(words, env=lazyfs.environment(), check=False, capture_output=True, text=True)


@pytest.mark.parametrize("command", ["export", "cat", "ls"])
def test_who_stops_reading_an_answer_makes_it_no_failure(command, lazyfs, image):
    lazyfs("index", image)
    arguments = {"cat": ["cat", image, "d/large", "d/large"]}.get(command, [command, image])
    done = in_shell(lazyfs, '"$@" | sleep 0.01; echo ${PIPESTATUS[0]}', *arguments)
    assert (done.stdout, done.stderr) == ("0\n", "")


@pytest.mark.parametrize("command", ["export", "cat", "ls", "inspect", "index"])
def test_a_full_output_is_named(command, lazyfs, image):
    lazyfs("index", image)
    arguments = {"cat": ["cat", image, "d/large"]}.get(command, [command, image])
    done = in_shell(lazyfs, '"$@" > /dev/full', *arguments)
    assert (done.returncode, done.stderr) == (74, "lazyfs: standard output: No space left on device\n")


def test_the_file_that_cannot_be_written_is_named(lazyfs, image, tmp_path):
    for words, path in (
        (["export", "-o", f"{tmp_path}/no/tar", image], f"{tmp_path}/no/tar"),
        (["export", "-o", "/dev/full", image], "/dev/full"),
        (["cp", image, "d/large", "/proc/large"], "/proc/large"),
        (["cp", "-r", image, "d", "/proc"], "/proc/d"),
    ):
        said = lazyfs(*words, exit_code=74).stderr
        assert said.startswith(f"lazyfs: {path}: "), said


def test_nothing_is_pulled_for_a_place_that_is_not_there(lazyfs, image, tmp_path):
    gone = tmp_path / "gone"
    said = lazyfs("mount", image, gone, exit_code=71).stderr
    assert said == f"lazyfs: {gone} does not exist: create the directory first\n"
    assert lazyfs("cp", image, "d/large", gone / "copy", exit_code=74).stderr.startswith(f"lazyfs: {gone}: ")
    assert json.loads(lazyfs("cache", "ls", "--json").stdout) == []


def test_a_second_mount_is_told_how_to_undo_the_first_and_of_metrics_that_nobody_gets(
    lazyfs, image, tmp_path
):
    point = tmp_path / "mnt"
    point.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = lazyfs("mount", "--metrics", port, image, point).stderr
    try:
        assert said == f"lazyfs: no metrics at {port}: Address already in use\n"
        again = lazyfs("mount", image, point, exit_code=73).stderr
        undo = f"lazyfs umount {point}"
        assert again == f"lazyfs: {point} has an image mounted on it: {undo}, or choose another directory\n"
    finally:
        lazyfs("umount", point)


def test_another_platform_than_the_one_asked_for_is_told(lazyfs, tmp_path):
    found, wanted = ("arm64", "amd64") if platform.machine() == "x86_64" else ("amd64", "arm64")
    built = build_image([tar(file(b"program", b"no program", mode=0o755))], platform=f"linux/{found}")
    name = f"oci:{write_layout(tmp_path / 'foreign', {'latest': built})}"
    assert lazyfs("ls", name).stderr == ""
    said = lazyfs("ls", "--platform", f"linux/{wanted}", name).stderr
    assert said == f"lazyfs: {name} is for linux/{found}, and has nothing for linux/{wanted}\n"
    environment = lazyfs.environment() | {"LAZYFS_CACHE_DIR": str(lazyfs.cache_dir)}
    told = f"lazyfs: the image is for linux/{found}: its programs may not run here, on linux/{wanted}"
    for command in (["/program"], []):
        words = [executable(), "run", name, *command]
        run = subprocess.run(words, env=environment, check=False, capture_output=True, text=True)
        assert run.returncode != 0
        assert run.stderr.splitlines()[0].startswith(told)


@pytest.mark.parametrize("option", ["--linger", "--hung-after"])
@pytest.mark.parametrize("seconds", ["nan", "inf", "-1"])
def test_seconds_are_finite(lazyfs, option, seconds):
    assert f"Invalid value for '{option}'" in lazyfs("daemon", option, seconds, exit_code=64).stderr


@pytest.mark.parametrize("command", ["stats", "explain"])
def test_no_mounts_are_told_of_in_words(command, lazyfs):
    done = lazyfs(command)
    assert done.stdout == ""
    assert done.stderr.startswith("lazyfs: no image is mounted")  # and more, where lazyfs daemon runs


def test_statistics_are_of_a_mount_or_of_the_service(lazyfs, tmp_path):
    absent = tmp_path / "daemon.sock"
    failed = lazyfs("stats", "--daemon", absent, exit_code=75)
    assert failed.stderr.startswith(f"lazyfs: no data daemon answers at {absent}: ")
    assert "either a directory or --daemon" in lazyfs("stats", "--daemon", absent, "/", exit_code=64).stderr


def test_stat_speaks_to_people(lazyfs, image):
    said = [line.split(maxsplit=1) for line in lazyfs("stat", image, "d/null").stdout.splitlines()]
    assert ["type", "character device"] in said
    assert ["mtime", "1970-01-01 00:00:00.000000000 UTC"] in said
    assert ["device", "1:3"] in said
    assert ["xattrs", "none"] in said


@pytest.fixture
def users_place() -> Iterator[Path]:
    """A directory of the ordinary user's; `tmp_path` is root's."""
    with tempfile.TemporaryDirectory(prefix="lazyfs-") as name:
        os.chown(name, int(NOBODY), int(NOBODY))
        yield Path(name)


def test_an_ordinary_user_copies_as_far_as_allowed(image, users_place):
    own = {"HOME": str(users_place), "LAZYFS_HOSTS_DIR": "/dev/null", "PATH": os.environ["PATH"]}
    words = [*UNPRIVILEGED, executable(), "cp", "-a", image, "d", str(users_place / "copy")]
    done = subprocess.run(words, env=own, check=False, capture_output=True, text=True)
    warning = "lazyfs: left out /d/null: only root makes device nodes\n"
    assert (done.returncode, done.stderr) == (0, warning)
    copied = (users_place / "copy/setuid").stat()
    assert (copied.st_uid, copied.st_mode & 0o7777) == (int(NOBODY), 0o755)  # setuid would be another user's
    assert not (users_place / "copy/null").exists()


def test_after_the_image_all_words_are_the_commands(lazyfs, image):
    """Options of optimize may stand before and after the image."""
    for words in (
        [image, "--replace", "nothing", "-x", "--json"],
        ["--replace", image, "--", "nothing", "--", "--json"],
    ):
        done = lazyfs("optimize", *words, exit_code=127, env={"LAZYFS_CACHE_DIR": str(lazyfs.cache_dir)})
        assert done.stderr.startswith("lazyfs: nothing: not found in the container")
    for words, slip in (
        ([image, "--relpace"], "No such option '--relpace' (did you mean --replace"),
        ([image, "--for", "2"], "nothing is run: give a COMMAND"),
        ([], "Missing argument 'IMAGE'"),
    ):
        done = subprocess.run(
            [executable(), "optimize", *words],
            env=lazyfs.environment(),
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 64
        assert done.stderr.startswith(f"lazyfs: {slip}")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["find", "IMAGE", "-size", "9" * 5000], "--size is like 4096"),
        (["packages", "IMAGE", "--json", "--format", "spdx"], "either --json or --format spdx"),
        (["cp", "IMAGE", "d/large", "-"], "lazyfs cat writes files to standard output"),
        (["stats", "--daemon", "debian:12"], "of an image tells lazyfs explain --daemon debian:12"),
    ],
)
def test_words_that_are_not_meant_so_are_refused(lazyfs, image, words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = lazyfs(*(image if word == "IMAGE" else word for word in words), exit_code=64)
    assert said in done.stderr
    assert not (tmp_path / "-").exists()


def test_the_largest_size_can_be_asked_for(lazyfs, image):
    assert lazyfs("find", image, "-size", f"-{'9' * 18}G", "-type", "f").stdout.split()
    assert lazyfs("find", image, "-size", f"+{'9' * 18}G").stdout == ""


def test_a_tar_goes_to_standard_output_by_the_usual_name(lazyfs, image, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = in_shell(lazyfs, '"$@" | tar -t', "export", image, "-o", "-")
    assert "d/large" in done.stdout
    assert not (tmp_path / "-").exists()
