"""What the shell completes: images, mounts and containers that are known here, as bash asks for them."""

import os
import pty
import select
import subprocess
import time
from pathlib import Path

import pytest

from lazyfs.cache.cache import Cache
from lazyfs.cache.catalogue import KeptImage
from lazyfs.cli.completing_bash import joined
from lazyfs.container.places import ContainerPlaces
from tests.support.images import build_image, write_layout
from tests.support.runner import LazyfsRunner, executable
from tests.support.tars import file, tar

NAMES = (
    "docker://docker.io/library/python:3.12",
    "docker://docker.io/team/python:3",
    "docker://127.0.0.1:5000/team/app:1",
    "oci:/srv/layout:latest",
    "oci:/srv/$(reboot):1",
    "oci:/srv/a b:1",
)
PATIENCE_S = 60.0


@pytest.fixture
def kept(lazyfs: LazyfsRunner) -> None:
    """Images in the cache, the first of them used last."""
    catalogue = Cache(lazyfs.cache_dir).catalogue
    there: set[Path] = set()
    for number, name in enumerate(reversed(NAMES)):
        catalogue.note(KeptImage(name, f"sha256:{number:064x}", (), (), ""))
        (noted,) = set((lazyfs.cache_dir / "catalogue").iterdir()) - there
        there.add(noted)
        os.utime(noted, (number, number))


def environment(lazyfs: LazyfsRunner) -> dict[str, str]:
    path = f"{Path(executable()).parent}:{os.environ['PATH']}"
    return lazyfs.environment() | {"LAZYFS_CACHE_DIR": str(lazyfs.cache_dir), "PATH": path}


def completed(lazyfs: LazyfsRunner, *words: str, **more: str) -> list[str]:
    """What bash is told, as type and value, when these are its words and the cursor is behind the last."""
    asked = {"_LAZYFS_COMPLETE": "bash_complete", "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run(
        [executable()],
        env=environment(lazyfs) | asked | {"COMP_WORDS": "\n".join(words)} | more,
        check=True,
        capture_output=True,
        text=True,
        cwd=lazyfs.home,
    )
    assert done.stderr == ""
    return list(filter(None, done.stdout.splitlines()))


@pytest.mark.usefixtures("kept")
def test_images_of_the_cache_are_completed_as_they_are_typed(lazyfs):
    assert completed(lazyfs, "lazyfs", "mount", "") == [
        "plain,python:3.12",
        "plain,team/python:3",
        "plain,127.0.0.1:5000/team/app:1",
        "plain,oci:/srv/layout:latest",
    ]
    assert completed(lazyfs, "lazyfs", "run", "py") == ["plain,python:3.12"]
    assert completed(lazyfs, "lazyfs", "ls", "-l", "te") == ["plain,team/python:3"]
    assert completed(lazyfs, "lazyfs", "inspect", "docker.io/l") == ["plain,docker.io/library/python:3.12"]
    assert completed(lazyfs, "lazyfs", "optimize", "nothing") == []
    assert completed(lazyfs, "lazyfs", "diff", "python:3.12", "te") == ["plain,team/python:3"]
    assert completed(lazyfs, "lazyfs", "cache", "rm", "team/python:3", "py") == ["plain,python:3.12"]
    assert completed(lazyfs, "lazyfs", "trace", "show", "py") == ["plain,python:3.12"]


@pytest.mark.usefixtures("kept")
def test_bash_that_splits_words_is_told_what_follows_the_last_break(lazyfs):
    """With its usual COMP_WORDBREAKS."""
    assert completed(lazyfs, "lazyfs", "mount", "python", ":", "3") == ["plain,3.12"]
    assert completed(lazyfs, "lazyfs", "mount", "python", ":") == ["plain,3.12"]
    assert completed(lazyfs, "lazyfs", "mount", "docker", ":", "//docker.io/l") == [
        "plain,//docker.io/library/python:3.12"
    ]
    assert completed(lazyfs, "lazyfs", "ls", "127.0.0.1", ":", "50") == ["plain,5000/team/app:1"]
    assert completed(lazyfs, "lazyfs", "diff", "python", ":", "3.12", "team/python", ":") == ["plain,3"]
    assert completed(lazyfs, "lazyfs", "mount", "oci", ":", "./la") == ["dir,oci:./la"]
    words = ["lazyfs", "ls", "--cache-dir", "=", str(lazyfs.cache_dir), "py"]
    assert completed(lazyfs, *words, LAZYFS_CACHE_DIR="/nowhere") == ["plain,python:3.12"]
    assert joined(["l", "a", "@", "sha256", ":", "12", "b"]) == ["l", "a@sha256:12", "b"]


@pytest.mark.usefixtures("kept")
def test_bash_completes_what_is_typed_at_a_terminal(lazyfs):
    """Bash itself, in a pseudo-terminal."""
    child, terminal = pty.fork()
    if child == 0:
        os.execvpe("bash", ["bash", "--norc", "-i"], environment(lazyfs) | {"PS1": "ready>", "TERM": "dumb"})
    try:
        wait_for(terminal, b"ready>")
        os.write(terminal, b'eval "$(_LAZYFS_COMPLETE=bash_source lazyfs)"; echo do"ne"\n')
        wait_for(terminal, b"done\r\nready>")
        for typed, shown in ((b"lazyfs mount python:\t", b"python:3.12 "), (b"te\t", b"team/python:3 ")):
            os.write(terminal, typed)
            wait_for(terminal, shown)
            os.write(terminal, b"\x15lazyfs diff a ")
            wait_for(terminal, b"lazyfs diff a ")
    finally:
        os.close(terminal)
        os.waitpid(child, 0)


def wait_for(terminal: int, wanted: bytes) -> None:
    """Read what a terminal shows until this stands there."""
    deadline, shown = time.monotonic() + PATIENCE_S, b""
    while wanted not in shown:
        ready, _, _ = select.select([terminal], [], [], deadline - time.monotonic())
        assert ready, shown
        shown += os.read(terminal, 4096)


def test_mounts_and_containers_are_completed(lazyfs, tmp_path):
    image = build_image([tar(file(b"f", b"1"))])
    layout = write_layout(tmp_path / "layout", {"latest": image})
    point = lazyfs.home / "point"
    point.mkdir(parents=True)
    assert completed(lazyfs, "lazyfs", "umount", "") == ["dir,"]
    lazyfs("mount", f"oci:{layout}", point)
    places = ContainerPlaces(lazyfs.cache_dir / "containers")
    try:
        with places.new("web") as place:
            place.note()
            assert completed(lazyfs, "lazyfs", "umount", "") == [f"plain,{point}"]
            assert completed(lazyfs, "lazyfs", "umount", "po") == ["plain,point"]
            assert completed(lazyfs, "lazyfs", "umount", "w") == ["dir,w"]
            for command in ("stats", "explain"):
                assert completed(lazyfs, "lazyfs", command, "") == [f"plain,{point}", "plain,web"]
                assert completed(lazyfs, "lazyfs", command, "w") == ["plain,web"]
            assert completed(lazyfs, "lazyfs", "exec", "") == ["plain,web"]
            assert completed(lazyfs, "lazyfs", "commit", "we") == ["plain,web"]
            assert completed(lazyfs, "lazyfs", "trace", "export", "") == [
                f"plain,{point}",
                f"plain,oci:{layout}",
            ]
    finally:
        lazyfs("umount", point)


def test_nothing_is_said_of_what_goes_wrong_and_nothing_is_made(lazyfs, tmp_path):
    absent = tmp_path / "absent"
    assert completed(lazyfs, "lazyfs", "ls", "", LAZYFS_CACHE_DIR=str(absent)) == []
    assert completed(lazyfs, "lazyfs", "exec", "", LAZYFS_CACHE_DIR=str(absent)) == []
    assert not absent.exists()
    assert completed(lazyfs, "lazyfs", "ls", "", LAZYFS_CONFIG=str(absent)) == []
    assert completed(lazyfs, "lazyfs", "no-such-command", "") == []
    assert completed(lazyfs, "lazyfs", "ls", "", COMP_CWORD="x") == []
    (lazyfs.cache_dir / "catalogue").mkdir(parents=True)
    (lazyfs.cache_dir / "catalogue" / "x.json").write_bytes(b"\xff{")
    assert completed(lazyfs, "lazyfs", "ls", "") == []
