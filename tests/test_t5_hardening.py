"""Newcomers' mistakes, hostile names, nonsense on sockets and unlucky signals, through the command line."""

import json
import os
import pty
import select
import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import pytest
import trio

from lazyfs.config import load_config
from lazyfs.daemon.ending import run_until_signal
from lazyfs.errors import ConfigError
from tests.support.images import build_image, write_layout
from tests.support.registry import Registry
from tests.support.runner import LazyfsRunner, executable
from tests.support.tars import directory, fifo, file, symlink, tar

ESCAPES = [b"\x1b]0;title\x07", b"\x1b[31mred", b"two\nlines", "\x9b31m".encode(), "\u202egnp.exe".encode()]
LAYER = tar(
    directory(b"d"),
    file(b"d/f", b"content"),
    *(file(b"d/" + name) for name in ESCAPES),
    symlink(b"d/link", b"\x1b[7m"),
)
PROCESS = {"Entrypoint": ["\x1b[31m"], "Cmd": ["a\nb", "\x9b"], "User": "\x1b", "WorkingDir": "/\u202e"}


@pytest.fixture
def image(tmp_path: Path) -> str:
    document = build_image([LAYER], process=PROCESS)
    return f"oci:{write_layout(tmp_path / 'layout', {'latest': document})}"


@pytest.fixture
def point(tmp_path: Path) -> Path:
    path = tmp_path / "mnt"
    path.mkdir()
    return path


@contextmanager
def mounted(lazyfs: LazyfsRunner, image: str, point: Path, *options: str) -> Iterator[dict[str, object]]:
    facts = json.loads(lazyfs("mount", "--json", image, point, *options).stdout)
    try:
        yield facts
    finally:
        subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)


def run_at(lazyfs: LazyfsRunner, place: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [executable(), *arguments, "--cache-dir", str(lazyfs.cache_dir)]
    env = lazyfs.environment()
    return subprocess.run(command, cwd=place, env=env, check=False, capture_output=True, text=True)


def on_a_terminal(lazyfs: LazyfsRunner, *arguments: str) -> bytes:
    """What a command writes on a terminal, both streams."""
    ours, theirs = pty.openpty()
    command = [executable(), *arguments, "--cache-dir", str(lazyfs.cache_dir)]
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=lazyfs.environment()):
        os.close(theirs)
        said = b""
        try:
            while piece := os.read(ours, 4096):
                said += piece
        except OSError:  # the end of a terminal
            pass
    os.close(ours)
    return said


@pytest.mark.parametrize("words", ["ls -l IMAGE d", "tree IMAGE", "find --json IMAGE", "inspect IMAGE"])
def test_strangers_names_do_not_command_the_terminal(words, lazyfs, image):
    said = on_a_terminal(lazyfs, *words.replace("IMAGE", image).split()).decode("utf-8", "surrogateescape")
    assert len(said.splitlines()) > len(ESCAPES)
    assert all(line.isprintable() for line in said.split("\r\n"))


def test_strangers_names_stay_in_their_line_of_a_warning(lazyfs, tmp_path):
    name = b"pipe\n\x1b[2Jlazyfs: all is well"
    layout = write_layout(tmp_path / "layout", {"latest": build_image([tar(fifo(name))])})
    warned = lazyfs("cp", "-r", f"oci:{layout}", "/", tmp_path / "out").stderr
    assert warned.count("\n") == 1
    assert "\x1b" not in warned


@pytest.mark.parametrize(("closed", "code"), [("0<&-", 0), ("1>&-", 74), ("2>&-", 0)])
def test_a_closed_standard_stream_is_nobodys_file(closed, code, lazyfs, image):
    lazyfs("index", image)
    script = f'exec "$0" "$@" {closed}'
    command = ["sh", "-c", script, executable(), "cat", image, "d/f", "--cache-dir", str(lazyfs.cache_dir)]
    done = subprocess.run(command, env=lazyfs.environment(), check=False, capture_output=True)
    assert done.returncode == code
    assert done.stderr == (b"lazyfs: standard output: Bad file descriptor\n" if code else b"")
    assert done.stdout == (b"" if code else b"content")
    lazyfs("cache", "verify")


@pytest.mark.parametrize("words", [["mount", "IMAGE", ""], ["umount", ""], ["cp", "IMAGE", "d/f", ""]])
def test_an_empty_name_is_not_the_working_directory(words, lazyfs, image):
    command, *arguments = (word.replace("IMAGE", image) for word in words)
    assert "the name is empty" in lazyfs(command, *arguments, exit_code=64).stderr


def test_a_file_is_not_copied_to_a_directorys_name(lazyfs, image, tmp_path):
    lazyfs("cp", image, "d/f", f"{tmp_path}/new/", exit_code=74)
    assert not (tmp_path / "new").exists()


def test_what_cat_wrote_before_an_error_is_there(lazyfs, image):
    assert lazyfs("cat", image, "d/f", "d/lost", exit_code=66).stdout == "content"


def test_a_mount_takes_no_module_from_the_working_directory_and_does_not_stay_there(lazyfs, point, tmp_path):
    place = tmp_path / "strange"
    place.mkdir()
    for name in ("lazyfs", "trio", "json"):
        (place / f"{name}.py").write_text("raise SystemExit('taken')")
    write_layout(place / "layout", {"latest": build_image([LAYER])})
    with mounted(lazyfs, f"oci:{place}/layout", point):
        pass
    assert run_at(lazyfs, place, "mount", "oci:layout", str(point)).stderr == ""
    facts = json.loads(lazyfs("stats", point, "--json").stdout)
    assert Path(f"/proc/{facts['pid']}/cwd").readlink() == Path("/")
    assert (point / "d/f").read_bytes() == b"content"
    lazyfs("umount", point)


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"[]\n",
        b"null\n",
        b'{"ask": 1}\n',
        b"[" * 900 + b"\n",
        b"[" * 60_000 + b"\n",
        b'"\\ud800"\n',
        b"\xff\n",
    ],
)
def test_nonsense_on_the_control_socket_ends_nothing(line, ask_daemon):
    assert ask_daemon(line) == b""
    assert json.loads(ask_daemon(b'{"ask": "stats"}\n'))["image_bytes"]


def test_more_connections_than_the_daemon_takes_end_nothing(ask_daemon):
    for held in [ask_daemon.connect() for _ in range(100)]:
        held.close()
    assert json.loads(ask_daemon(b'{"ask": "stats"}\n'))["image_bytes"]


class _Asker:
    def __init__(self, state: Path) -> None:
        self._state = state

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(20)
        descriptor = os.open(self._state, os.O_PATH)
        connection.connect(f"/proc/self/fd/{descriptor}/control.sock")
        os.close(descriptor)
        return connection

    def __call__(self, line: bytes) -> bytes:
        with self.connect() as connection, connection.makefile("rb") as lines:
            try:
                connection.sendall(line)
                return lines.readline()
            except ConnectionError:
                return b""


@pytest.fixture(scope="module")
def ask_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Asker]:
    top = tmp_path_factory.mktemp("asked")
    lazyfs, point = LazyfsRunner(home=top / "home", cache_dir=top / "cache"), top / "mnt"
    point.mkdir()
    layout = write_layout(top / "layout", {"latest": build_image([LAYER])})
    with mounted(lazyfs, f"oci:{layout}", point):
        yield _Asker(top / "home/run" / sha256(os.fsencode(point)).hexdigest()[:32])
        lazyfs("umount", point)


@pytest.fixture
def signal_handlers() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("signal_handlers")
async def test_signals_after_the_first_do_not_disturb_the_end():
    ended = []

    async def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                    os.kill(os.getpid(), number)
                    await trio.lowlevel.checkpoint()
            ended.append(True)

    await run_until_signal(work)
    assert ended == [True]


@pytest.mark.usefixtures("signal_handlers")
async def test_an_error_of_the_work_comes_out_alone():
    async def work() -> None:
        raise ConfigError("no")

    with pytest.raises(ConfigError):
        await run_until_signal(work)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_mount_in_the_foreground_ends_with_its_command(number, lazyfs, image, point):
    command = [executable(), "mount", "--foreground", "--json", image, str(point)]
    env = lazyfs.environment() | {"LAZYFS_CACHE_DIR": str(lazyfs.cache_dir)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env) as mount:
        assert mount.stdout is not None
        while mount.stdout.readline().strip() != b"}":
            pass
        assert point.is_mount()
        mount.send_signal(number)
        assert mount.wait(20) == 0
    assert not point.is_mount()


def test_a_foreign_mount_at_a_killed_daemons_place_is_left_alone(lazyfs, image, point):
    with mounted(lazyfs, image, point) as facts:
        os.kill(int(str(facts["pid"])), signal.SIGKILL)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", point], check=True)
    (point / "mine").touch()
    lazyfs("umount", point, exit_code=66)
    assert (point / "mine").exists()
    subprocess.run(["umount", point], check=True)
    lazyfs("umount", point)  # forgets the dead
    assert lazyfs("stats", "--json").stdout == "[]\n"


def test_the_last_user_of_a_lazily_unmounted_tree_takes_no_other_mounts_state(lazyfs, image, point):
    with mounted(lazyfs, image, point) as first:
        user = os.open(point / "d/f", os.O_RDONLY)
        lazyfs("umount", "--lazy", point)
        with mounted(lazyfs, image, point) as second:
            watched = os.pidfd_open(int(str(first["pid"])))
            os.close(user)
            _wait_readable(watched)
            assert json.loads(lazyfs("stats", point, "--json").stdout)["pid"] == second["pid"]
            lazyfs("umount", point)


def _wait_readable(descriptor: int) -> None:
    assert select.select([descriptor], [], [], 20)[0]
    os.close(descriptor)


def test_a_tree_is_unmounted_lazily_from_within(lazyfs, image, point):
    with mounted(lazyfs, image, point):
        done = run_at(lazyfs, point / "d", "umount", "--lazy", "..")
        assert (done.returncode, done.stderr) == (0, "")


def test_what_is_mounted_below_is_named(lazyfs, image, point):
    with mounted(lazyfs, image, point), mounted(lazyfs, image, point / "d"):
        assert f"unmount {point}/d first" in lazyfs("umount", point, exit_code=71).stderr
        lazyfs("umount", point / "d")
        lazyfs("umount", point)


@pytest.mark.parametrize("driver", ["erofs", "fuse"])
def test_of_mounts_at_one_place_at_once_one_wins(driver, lazyfs, image, point):
    lazyfs("index", image)

    def mount(_: int) -> int:
        command = [executable(), "mount", "--driver", driver, image, str(point)]
        env = lazyfs.environment() | {"LAZYFS_CACHE_DIR": str(lazyfs.cache_dir)}
        return subprocess.run(command, check=False, env=env, capture_output=True).returncode

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(mount, range(4))) == [0, 73, 73, 73]
    lazyfs("umount", point)
    assert not point.is_mount()


def test_processes_that_index_an_image_at_once_pull_each_layer_once(lazyfs, tmp_path):
    layers = [tar(file(b"f%d" % number, os.urandom(400_000))) for number in range(2)]
    with Registry() as registry:
        registry.push("app", build_image(layers))

        def index(_: int) -> str:
            return lazyfs("index", f"{registry.host}/app").stdout

        with ThreadPoolExecutor(4) as pool:
            assert len(set(pool.map(index, range(4)))) == 1
        document = build_image(layers)
        pulls = [seen.target.rpartition("/")[2] for seen in registry.seen if seen.method == "GET"]
        assert [pulls.count(layer["digest"]) for layer in document.json["layers"]] == [1, 1]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("READ_TIMEOUT_S", "nan"),
        ("READ_TIMEOUT_S", "inf"),
        ("STALL_TIMEOUT_S", "-1"),
        ("RETRIES", "-1"),
        ("RETRIES", "1" + "0" * 5000),
        ("MAX_CONNECTIONS", "9" * 30),
        ("FREE_FLOOR_MIB", "-1"),
        ("OFFLINE", "maybe"),
        ("CACHE_DIR", "~nobody-of-this-name/c"),
        ("LOG_LEVEL", ""),
    ],
)
def test_a_senseless_variable_is_refused(name, text):
    with pytest.raises(ConfigError, match=f"(?i){name}"):
        load_config({"HOME": "/h", f"LAZYFS_{name}": text}, {}, Path("/dev/null"))


@pytest.mark.parametrize(
    "line", ["auth_files = [1]", "read_timeout_s = 1" + "0" * 400, 'cache_dir = "a\\u0000"']
)
def test_a_senseless_value_in_a_file_is_refused(line, tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(line)
    with pytest.raises(ConfigError, match=line.partition(" ")[0]):
        load_config({"HOME": "/h"}, {}, path)


def test_empty_variables_and_relative_bases_are_as_none():
    empty = {
        f"LAZYFS_{name}": "" for name in ("CACHE_DIR", "OFFLINE", "RETRIES", "READ_TIMEOUT_S", "CA_FILE")
    }
    environment = {"HOME": "/h", "XDG_CACHE_HOME": "relative", **empty}
    assert load_config(environment, {}, Path("/dev/null")) == load_config(
        {"HOME": "/h"}, {}, Path("/dev/null")
    )
