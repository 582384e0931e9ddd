"""The Python API: an image read with the words of `os` and `io`, from any thread and under trio."""

import io
import os
import re
import signal
import stat
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lazyfs import api
from lazyfs.errors import BadReference, ConfigError, NotFound, WrongKind
from lazyfs.fsspec import LazyFileSystem
from lazyfs.image.inside.browse import Query
from lazyfs.image.inside.difference import Kind
from lazyfs.portal import Portal
from tests.support.images import build_image, write_layout
from tests.support.tars import char, directory, file, hardlink, symlink, tar, whiteout

DATA = bytes(range(256)) * 3000
LOWER = tar(
    directory(b"etc", mode=0o750, uid=3),
    file(b"etc/hosts", b"127.0.0.1 localhost\n", mtime="1577934245.123456789", xattrs={b"user.a": b"\0"}),
    file(b"data/large", DATA),
    hardlink(b"data/again", b"data/large"),
    symlink(b"data/link", b"../etc/hosts"),
    symlink(b"data/gone", b"nowhere"),
    symlink(b"to-etc", b"/etc"),
    file(b"data/\xff", b"odd"),
    char(b"dev/null", 1, 3),
    file(b"old", b"old"),
)
UPPER = tar(whiteout(b"old"), file(b"etc/new.conf", b"new"))


@pytest.fixture(scope="module")
def layout(tmp_path_factory) -> str:
    images = {"latest": build_image([LOWER, UPPER]), "lower": build_image([LOWER])}
    return f"oci:{write_layout(tmp_path_factory.mktemp('layout'), images)}"


@pytest.fixture(scope="module")
def image(layout, tmp_path_factory) -> Iterator[api.Image]:
    with api.open_image(f"{layout}:latest", cache_dir=tmp_path_factory.mktemp("cache") / "c") as opened:
        yield opened


def test_names_are_listed_as_os_lists_them(image):
    assert image.listdir() == ["data", "dev", "etc", "to-etc"]
    assert (
        image.listdir("/to-etc/")
        == ["hosts", "new.conf"]
        == image.listdir(b"etc")
        == image.listdir(Path("etc"))
    )
    assert image.listdir("data") == ["again", "gone", "large", "link", "\udcff"]
    assert [(entry.name, entry.letter) for entry in image.scandir("dev")] == [(b"null", "c")]
    assert image.exists("data/link")
    assert not image.exists("data/gone")
    assert image.exists("data/gone", follow=False)


def test_attributes_are_those_of_stat(image):
    found = image.stat("etc/hosts")
    assert (found.st_mode, found.st_size, found.st_nlink) == (stat.S_IFREG | 0o644, 20, 1)
    assert found.st_mtime_ns == 1577934245123456789
    assert image.stat("data/large").st_ino == image.stat("data/again").st_ino
    assert image.stat("data/large").st_nlink == 2
    assert (image.stat("etc").st_uid, stat.S_IMODE(image.stat("to-etc").st_mode)) == (3, 0o750)
    assert stat.S_ISLNK(image.stat("to-etc", follow=False).st_mode)
    assert image.stat("dev/null").st_rdev == os.makedev(1, 3)
    assert image.xattrs("data/link") == {"user.a": b"\0"}
    assert image.readlink("data/link") == "../etc/hosts"


def test_a_walk_goes_down_where_it_is_let(image):
    assert list(image.walk("/")) == [
        ("/", ["data", "dev", "etc"], ["to-etc"]),
        ("/data", [], ["again", "gone", "large", "link", "\udcff"]),
        ("/dev", [], ["null"]),
        ("/etc", [], ["hosts", "new.conf"]),
    ]
    walked = []
    for top, directories, _ in image.walk():
        walked.append(top)
        directories.clear()
    assert walked == ["/"]


PATTERNS = {
    "/etc/*": ["/etc/hosts", "/etc/new.conf"],
    "etc/*.conf": ["/etc/new.conf"],
    "*/[hn]*": ["/dev/null", "/etc/hosts", "/etc/new.conf", "/to-etc/hosts", "/to-etc/new.conf"],
    "to-etc/hosts": ["/to-etc/hosts"],
    "**/n*": ["/dev/null", "/etc/new.conf"],
    "**/**/hosts": ["/etc/hosts"],
    "**": ["/", "/data", "/dev", "/etc"],
    "data/?": ["/data/\udcff"],
    "data/gone/*": [],
    "../etc": [],
    "no/*": [],
    "/": ["/"],
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_match_by_components(image, pattern):
    assert list(image.glob(pattern)) == PATTERNS[pattern]


def test_files_are_read_whole_or_in_part(image):
    assert image.read_text("data/link") == "127.0.0.1 localhost\n"
    assert image.read_bytes(b"data/\xff") == b"odd"
    assert image.read_bytes("data/large", 255, 2) == b"\xff\0"
    assert image.read_bytes("data/large", len(DATA) - 1, 10) == b"\xff"
    assert image.read_bytes("data/large", len(DATA) + 1) == b""


def test_a_file_object_reads_text_and_lines(image):
    with image.open("etc/hosts", "r") as text:
        assert text.readlines() == ["127.0.0.1 localhost\n"]
    with image.open("etc/hosts") as raw:
        assert isinstance(raw, io.BufferedReader)
        assert raw.raw.name == "/etc/hosts"
        assert (raw.readable(), raw.seekable(), raw.writable()) == (True, True, False)
        with pytest.raises(ValueError, match="before the start"):
            raw.seek(-1)
        with pytest.raises(ValueError, match="whence"):
            raw.raw.seek(0, 9)
    with pytest.raises(ValueError, match="read-only"):
        image.open("etc/hosts", "wb")


_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(-1, 400_000)),
        st.tuples(st.just("seek"), st.integers(0, len(DATA) + 10)),
        st.tuples(st.just("end"), st.integers(-len(DATA), 10)),
    ),
    max_size=10,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_STEPS)
def test_a_file_object_is_as_good_as_one_in_memory(image, steps):
    memory = io.BytesIO(DATA)
    with image.open("data/large") as ours:
        for what, number in steps:
            if what == "read":
                assert ours.read(number) == memory.read(number)
            else:
                whence = io.SEEK_END if what == "end" else io.SEEK_SET
                assert ours.seek(number, whence) == memory.seek(number, whence)
            assert ours.tell() == memory.tell()


def test_many_threads_read_at_once(image):
    with ThreadPoolExecutor(8) as pool:
        starts = range(0, len(DATA), 10_000)
        found = list(pool.map(lambda start: image.read_bytes("data/large", start, 10_000), starts))
    assert b"".join(found) == DATA


def test_what_is_not_there_and_what_is_no_file_are_told(image):
    with pytest.raises(NotFound, match="the image has no /etc/nothing"):
        image.read_bytes("/etc/nothing")
    with pytest.raises(NotFound, match="the image has no /data/gone"):
        image.stat("data/gone")
    with pytest.raises(NotFound, match="the image has no /old"):
        image.open("old")
    with pytest.raises(WrongKind, match="/etc is a directory"):
        image.read_bytes("etc")
    with pytest.raises(WrongKind, match="/dev/null is not a regular file"):
        image.open("dev/null")
    with pytest.raises(WrongKind, match="/etc/hosts is not a directory"):
        image.listdir("etc/hosts")
    with pytest.raises(WrongKind, match="/etc is not a symlink"):
        image.readlink("etc")


def test_an_image_can_be_searched_measured_copied_and_exported(image, tmp_path):
    assert [entry.path for entry in image.find("/", Query(name="*.conf"))] == [b"etc/new.conf"]
    assert {line.path: line.size for line in image.usage("etc")} == {b"etc": 23}
    assert [layer.size for layer in image.layer_usage("/etc")] == [20, 3]
    assert image.layers().wasted == 3
    assert image.packages().packages == ()
    image.copy("etc", tmp_path, recursive=True)
    assert (tmp_path / "etc" / "hosts").read_text() == "127.0.0.1 localhost\n"
    with (tmp_path / "a.tar").open("wb") as out:
        image.export(out)
    assert (tmp_path / "a.tar").stat().st_size % 10240 == 0
    assert (image.config.architecture, image.digest[:7]) == ("amd64", "sha256:")
    assert repr(image) == f"<Image {image.name} {image.digest}>"


def test_a_closed_image_is_told_apart_from_a_broken_one(layout, tmp_path):
    opened = api.open_image(f"{layout}:lower", cache_dir=tmp_path / "c")
    handle = opened.open("data/large")
    opened.close()
    opened.close()
    with pytest.raises(ValueError, match="closed"):
        handle.read()
    with pytest.raises(ValueError, match="closed"):
        opened.read_bytes("data/large")


def test_what_fails_when_opening_is_raised_where_it_was_asked_for(layout, tmp_path):
    with pytest.raises(BadReference):
        api.open_image("UPPER CASE", cache_dir=tmp_path / "c")
    with pytest.raises(NotFound, match="lower"):
        api.open_image(f"{layout}:nothing", cache_dir=tmp_path / "c")
    with pytest.raises(ConfigError):
        api.open_image(f"{layout}:lower", cache_dir=tmp_path / "c", read_timeout_s=-1.0)
    with pytest.raises(TypeError, match="not both"):
        api.open_image(f"{layout}:lower", config=api.settled(None, {}), cache_dir=tmp_path / "c")


def test_a_misspelt_setting_is_an_error(layout, tmp_path):
    with pytest.raises(ConfigError, match="unknown"):
        api.open_image(f"{layout}:lower", cache_dir=tmp_path / "c", cachedir="x")


async def test_under_trio_reads_are_awaited(layout, tmp_path):
    async with api.open_async(f"{layout}:latest", cache_dir=tmp_path / "c") as opened:
        assert opened.listdir("etc") == ["hosts", "new.conf"]
        assert await opened.read_bytes("etc/new.conf") == b"new"
        assert b"".join([piece async for piece in opened.pieces("data/large")]) == DATA


def test_two_images_are_compared_by_name(layout, tmp_path):
    found = api.difference(f"{layout}:lower", f"{layout}:latest", cache_dir=tmp_path / "c")
    assert {change.path: change.kind for change in found.changes} == {
        b"old": Kind.DELETED,
        b"etc/new.conf": Kind.ADDED,
    }
    assert found.read_bytes == 0


# The portal below.


@asynccontextmanager
async def _opened(log: list[str]) -> AsyncIterator[str]:
    log.append("open")
    try:
        yield "value"
    finally:
        log.append("closed")


def test_a_portal_enters_and_leaves_its_context_once():
    log: list[str] = []
    threads = set(threading.enumerate())
    portal = Portal(_opened(log))
    assert (portal.value, log) == ("value", ["open"])

    async def answer(what: str) -> str:
        await trio.lowlevel.checkpoint()
        return what

    assert portal.call(answer, "this") == "this"
    portal.close()
    assert log == ["open", "closed"]
    assert set(threading.enumerate()) <= threads
    with pytest.raises(ValueError, match="closed"):
        portal.call(answer, "this")


def test_what_a_call_raises_is_the_caller_s_and_the_portal_goes_on():
    async def fail() -> None:
        raise KeyError("mine")

    portal = Portal(_opened([]))
    for _ in range(2):
        with pytest.raises(KeyError, match="mine"):
            portal.call(fail)
    portal.close()


def test_what_goes_wrong_on_leaving_is_raised_by_close():
    @asynccontextmanager
    async def context() -> AsyncIterator[None]:
        yield
        raise OSError("on leaving")

    portal = Portal(context())
    with pytest.raises(OSError, match="on leaving"):
        portal.close()
    portal.close()


@pytest.mark.parametrize("receiver", [threading.main_thread, threading.current_thread])
def test_an_interrupted_opening_is_given_up(receiver):
    """Also where the kernel gives the signal to another thread than the one that waits, which sleeps on."""
    left = threading.Event()

    @asynccontextmanager
    async def context() -> AsyncIterator[None]:
        signal.pthread_kill(receiver().ident, signal.SIGINT)
        try:
            await trio.sleep_forever()
            yield
        finally:
            left.set()

    with pytest.raises(KeyboardInterrupt):
        Portal(context())
    assert left.wait(30)


DOCUMENTED = Path(__file__).parents[1] / "docs" / "api.md"


def test_the_examples_of_the_documentation_run(tmp_path, monkeypatch, capsys):
    """One after the other, as a reader would run them, on an image that has what they ask for."""
    files = ["etc/os-release", "etc/hostname", "etc/passwd", "usr/bin/python3", "usr/lib/x/y.conf"]
    images = {
        version: build_image([tar(*(file(path.encode(), b"\x7fELF:" * 9) for path in files[: 4 + number]))])
        for number, version in enumerate(("old", "new"))
    }
    layout = f"oci:{write_layout(tmp_path / 'layout', images)}"
    monkeypatch.setenv("LAZYFS_CACHE_DIR", str(tmp_path / "cache"))
    examples = re.findall(r"```python\n(.*?)```", DOCUMENTED.read_text(), re.DOTALL)
    text = "\n".join(examples).replace("python:3.12-slim", f"{layout}:old")
    exec(compile(text.replace("python:3.13-slim", f"{layout}:new"), DOCUMENTED, "exec"), {})
    LazyFileSystem.clear_instance_cache()
    assert len(examples) == 4
    assert "A usr/lib []" in capsys.readouterr().out
