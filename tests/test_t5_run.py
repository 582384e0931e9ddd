"""lazyfs run with the real runtimes, on real images, and what is left afterwards."""

import os
import pty
import random
import re
import select
import signal
import socket
import struct
import subprocess
import termios
import time
import urllib.request
from contextlib import suppress
from fcntl import ioctl
from pathlib import Path

import pytest

from tests.support.containers import Containers, until
from tests.support.images import build_image, write_layout
from tests.support.page_cache import PAGE
from tests.support.runner import LazyfsRunner, executable
from tests.support.tars import directory, file, tar

FOR_EVER = "while :; do sleep 0.05; done"

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture(scope="module")
def image(lab_image):
    """From a name to an image's name."""
    return lambda name: f"oci:{lab_image(name)}:latest"


def shell(containers, image, script: str, *options: str) -> list[str]:
    """The lines that a script prints in the base image."""
    return containers("run", *options, image("base"), "sh", "-c", script).stdout.splitlines()


def free_port() -> int:
    """A port that the kernel gives nobody who does not name it: it is bound a while later, in a container."""
    first, _ = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    while True:
        port = random.randrange(first // 2, first)
        with suppress(OSError), socket.socket() as free:
            free.bind(("", port))
            return port


def page(port: int) -> bytes:
    """What a server says, once it does."""
    answers = []

    def asked() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                answers.append(answer.read())
        except OSError:
            return False
        return True

    until(asked, f"somebody answers at {port}")
    return answers[0]


@pytest.mark.parametrize("driver", ["erofs", "fuse"])
@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_python_runs_with_either_driver_and_runtime(containers, image, driver, runtime):
    program = "import json, ssl, os; print(json.dumps([6 * 7, os.getpid()]))"
    options = ("--driver", driver, "--runtime", runtime)
    done = containers("run", *options, image("python"), "python3", "-c", program)
    assert (done.stdout, done.stderr) == ("[42, 1]\n", "")


def test_nginx_answers_and_stops_at_its_own_signal(containers, image):
    port = free_port()
    script = f"sed -i s/8080/{port}/ /etc/nginx/conf.d/lab.conf && exec nginx -g 'daemon off;'"
    with containers.started("--name", "web", image("nginx"), "sh", "-c", script) as process:
        assert page(port) == b"<h1>lab</h1>\n"
        process.terminate()  # becomes the image's SIGQUIT
        assert process.wait(30) == 0


def test_postgres_is_initialised_started_and_asked(containers, image):
    script = """
    initdb --no-sync -D /srv/data/db >/dev/null &&
    pg_ctl -w -s -D /srv/data/db -o "-k /tmp -c listen_addresses= -c fsync=off" -l /tmp/log start &&
    psql -h /tmp -d postgres -Atc 'select 6 * 7' -c 'select current_user' &&
    pg_ctl -w -s -D /srv/data/db stop
    """
    done = containers("run", "--net", "none", image("postgres"), "sh", "-c", script)
    assert done.stdout == "42\npostgres\n"


def test_node_serves_what_the_image_says_as_its_user(containers, image):
    port = free_port()
    with containers.started("-e", f"PORT={port}", "--stop-signal", "KILL", image("node")) as process:
        assert page(port) == b"hello\n"
        process.terminate()
        assert process.wait(30) == 137
    assert containers("run", image("node"), "id").stdout == (
        "uid=1000(node) gid=1000(node) groups=1000(node),60(games)\n"
    )


def test_words_and_options_shape_the_process(containers, image, tmp_path):
    (tmp_path / "env").write_text("# comment\nFILE=1\nOURS\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/file").write_text("from the host")
    done = containers(
        *("run", "--net", "none", "--hostname", "box", "--read-only", "-e", "OURS", "-e", "A=b c"),
        *("--env-file", tmp_path / "env", "-w", "/new/place", "--user", "nobody:tty"),
        *("-v", f"{tmp_path}/data:/data:ro", "-v", f"{tmp_path}/data:/again", "--entrypoint", '["sh", "-c"]'),
        image("base"),
        'hostname; pwd; id; echo "$A $FILE $OURS"; cat /data/file; touch /data/x ./x; ls /sys/class/net',
        env={"OURS": "here"},
        exit_code=0,
    )
    assert done.stdout.splitlines() == [
        "box",
        "/new/place",
        "uid=65534(nobody) gid=5(tty) groups=5(tty)",
        "b c 1 here",
        "from the hostlo",
    ]
    assert done.stderr.count("Read-only file system") == 2


def test_directories_too_deep_for_any_path_go_with_their_container(containers, image):
    script = """perl -e 'for (1 .. 3000) { mkdir "d" and chdir "d" or die $! } print "made"'"""
    assert shell(containers, image, script) == ["made"]
    assert containers.left() == []


def test_the_root_can_be_written_and_setuid_programs_count(containers, image):
    lines = shell(
        containers, image,
        """rm /etc/passwd- && rm -rf /etc/apt && mkdir /etc/apt && echo new > /etc/apt/file && ls /etc/apt
        cp /usr/bin/id /usr/local/bin/sid && chmod 4755 /usr/local/bin/sid
        setpriv --reuid 1 --regid 1 --clear-groups sid -u
        mknod /null c 1 3 && echo x > /null && stat -c %t:%T /null""",
    )  # fmt: skip
    assert lines == ["file", "0", "1:3"]
    assert shell(containers, image, "ls /etc/passwd-") == ["/etc/passwd-"]  # nothing of it was kept


def test_a_container_is_as_confined_as_dockers(containers, image):
    lines = shell(
        containers, image,
        """grep -E 'CapEff|CapBnd' /proc/self/status; wc -c < /proc/interrupts
        echo 1 > /proc/sys/kernel/sysrq; ls /sys/firmware; ls /dev; echo $$""",
    )  # fmt: skip
    assert lines[:3] == ["CapEff:\t00000000a80425fb", "CapBnd:\t00000000a80425fb", "0"]
    assert set(lines[3:-1]) <= {
        *("core", "fd", "full", "fuse", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin"),
        *("stdout", "tty", "urandom", "zero"),
    }
    assert lines[-1] == "1"


def test_a_hostile_passwd_leads_nowhere_else(containers, image, tmp_path):
    secret = tmp_path / "passwd"
    secret.write_text("secret:x:4321:4321::/:/bin/sh\n")
    script = f"ln -sf {secret} /etc/passwd"
    containers("run", "--upper", tmp_path / "up", image("base"), "sh", "-c", script)
    done = containers(
        "run", "--upper", tmp_path / "up", "--user", "secret", image("base"), "id", exit_code=125
    )
    assert "no user 'secret'" in done.stderr


def test_standard_input_comes_only_when_asked_for(containers, image):
    assert containers("run", "-i", image("base"), "cat", told="given\n").stdout == "given\n"
    assert containers("run", image("base"), "cat", told="given\n").stdout == ""


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["sh", "-c", "exit 7"], 7, ""),
        (["sh", "-c", "sh -c 'kill -9 $$'"], 137, ""),
        (["nope"], 127, "lazyfs: nope: not found in the container in its PATH"),
        (["/etc/nope"], 127, "lazyfs: /etc/nope: not found in the container"),
        (["/etc"], 126, "lazyfs: /etc: is a directory in the container"),
        (["/etc/passwd"], 126, "lazyfs: /etc/passwd: may not be executed in the container"),
    ],
)
def test_the_exit_code_is_the_containers_or_says_why_there_was_none(containers, image, words, code, said):
    done = containers("run", image("base"), *words, exit_code=code)
    assert done.stderr.startswith(said)
    assert len(done.stderr.splitlines()) <= 1


def test_what_cannot_be_run_is_said_in_a_line(containers, image, tmp_path):
    for words, code in (
        (["--user", "nobodyelse", image("base"), "id"], 125),
        (["-v", f"{tmp_path}/absent:/x", image("base"), "id"], 125),
        (["--runtime", "nope", image("base"), "id"], 125),
        (["-w", "/etc/passwd", image("base"), "id"], 125),
        (["--name", "a/b", image("base"), "id"], 125),
        ([f"oci:{tmp_path}/absent", "id"], 66),
        (["--net", "bridge", image("base"), "id"], 64),
    ):
        done = containers("run", *words, exit_code=code)
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert done.stderr.startswith("lazyfs: ")


@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_why_the_runtime_failed_is_said_once(containers, image, tmp_path, runtime):
    words = ("run", "--runtime", runtime, "-v", f"{tmp_path}:/etc/passwd")
    *told, ours = containers(*words, image("base"), "id", exit_code=125).stderr.splitlines()
    assert sum("irectory" in line for line in told) == 1
    assert ours == f"lazyfs: {runtime} cannot start the container: it says why above"
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [executable(), *words, "-t", image("base"), "id"],
        env=containers.environment, stdin=slave, stdout=slave, stderr=subprocess.PIPE,
    )  # fmt: skip
    said = process.communicate()[1].decode()
    os.close(master)
    os.close(slave)
    assert process.returncode == 125
    assert said.count("irectory") == said.count("\n") == 1
    assert said.startswith(f"lazyfs: {runtime} cannot start the container: ")


def test_changes_are_kept_where_the_user_says_and_gone_on_with(containers, image, tmp_path):
    kept = tmp_path / "kept"
    containers("run", "--rm", "--upper", kept, image("base"), "sh", "-c", "echo 1 > /one; rm /etc/passwd-")
    lines = containers("run", "--upper", kept, image("base"), "sh", "-c", "cat /one; ls /etc/passwd-; echo 2")
    assert lines.stdout == "1\n2\n"
    assert (kept / "upper/one").read_text() == "1\n"
    done = containers("run", "--upper", kept, image("python"), "id", exit_code=125)
    assert "as it was then" in done.stderr
    with containers.started("--name", "user", "--upper", kept, image("base"), "sleep", "60"):
        containers.pid("user")
        done = containers("run", "--upper", kept, image("base"), "id", exit_code=125)
        assert "another container uses it" in done.stderr
        done = containers("run", "--name", "user", image("base"), "id", exit_code=125)
        assert "a container named 'user' is running" in done.stderr


def test_signals_are_passed_on(containers, image):
    script = f"trap 'echo int' INT; trap 'echo usr1' USR1; trap 'echo term; exit 9' TERM; echo up; {FOR_EVER}"
    with containers.started(image("base"), "sh", "-c", script) as process:
        for number, line in ((None, "up"), (signal.SIGINT, "int"), (signal.SIGUSR1, "usr1")):
            if number:
                process.send_signal(number)
            assert process.stdout.readline() == line + "\n"
        process.terminate()
        assert process.stdout.readline() == "term\n"
        assert process.wait(30) == 9


def test_who_ignores_the_order_to_end_is_killed_at_the_third(containers, image):
    script = f"trap 'echo heard' INT; echo up; {FOR_EVER}"
    with containers.started("--name", "stubborn", image("base"), "sh", "-c", script) as process:
        assert process.stdout.readline() == "up\n"
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            assert process.stdout.readline() == "heard\n"  # signals that come together are one
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 137


def test_a_terminal_has_our_size_and_what_is_typed(containers, image):
    master, slave = pty.openpty()
    ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 77, 0, 0))
    script = (
        f"tty; stty size; read line; echo got $line; trap 'stty size; exit 5' WINCH; echo ready; {FOR_EVER}"
    )
    process = subprocess.Popen(
        [executable(), "run", "-it", image("base"), "sh", "-c", script],
        env=containers.environment, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
    )  # fmt: skip
    shown = b""

    def expect(pattern: bytes) -> None:
        nonlocal shown
        while not re.search(pattern, shown):
            assert select.select([master], [], [], 60)[0], shown
            shown += os.read(master, 4096)

    try:
        expect(rb"/dev/pts/0\r\n33 77\r\n")
        os.write(master, b"words\r")
        expect(rb"got words\r\nready\r\n")
        ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 44, 88, 0, 0))
        process.send_signal(signal.SIGWINCH)
        expect(rb"44 88\r\n")
        assert process.wait(30) == 5
        assert termios.tcgetattr(slave)[3] & termios.ECHO  # as it was before
    finally:
        process.kill()
        process.wait()
        os.close(master)
        os.close(slave)


def test_a_terminal_that_hangs_up_takes_the_containers_with_it(containers, image):
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [executable(), "run", "-it", image("base"), "sh"],
        env=containers.environment, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    try:
        assert select.select([master], [], [], 60)[0]
        assert b"# " in os.read(master, 4096)
        os.close(master)
        process.wait(30)
    finally:
        process.kill()
        process.wait()
    assert containers.left() == []


def test_a_terminal_cannot_be_made_of_a_pipe(containers, image):
    done = containers("run", "-it", image("base"), "id", exit_code=64)
    assert "takes a terminal" in done.stderr


@pytest.mark.parametrize("driver", ["erofs", "fuse"])
def test_whoever_is_killed_nothing_is_left(containers, image, driver):
    def children(process: subprocess.Popen) -> list[int]:
        text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        return list(map(int, text.split()))

    options = ("--driver", driver, "--name", "victim", image("base"), "sleep", "1000")
    with containers.started(*options) as process:
        pid = containers.pid("victim")
        process.kill()
        until(lambda: not Path(f"/proc/{pid}").exists(), "the container dies with its runner")
    until(lambda: not containers.left(), "all of it goes")
    with containers.started(*options) as process:
        pid = containers.pid("victim")
        until(lambda: sorted(children(process))[2:] == [pid], "the runtime has left the container to us")
        _undertaker, server, _first = sorted(children(process))
        os.kill(server, signal.SIGKILL)
        assert process.wait(30) == 71
        assert "the daemon that serves the container's root died" in process.stderr.read()
    assert containers.left() == []
    with containers.started(*options) as process:
        pid = containers.pid("victim")
        undertaker = min(children(process))
        os.kill(undertaker, signal.SIGKILL)
        process.kill()
        process.wait()
        assert containers.left() != []
        containers("run", image("base"), "true")
        until(lambda: not Path(f"/proc/{pid}").exists(), "the next run kills it")
    assert containers.left() == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_a_container_wrote_goes_though_its_runner_is_killed_while_it_clears(containers, image, number):
    script = "mkdir /many && cd /many && seq 50000 | xargs touch"
    with containers.started("--name", "writer", image("base"), "sh", "-c", script) as process:
        until(lambda: any(containers.places.glob(".writer.*")), "it has ended, and is cleared")
        process.send_signal(number)
        process.wait(30)
    until(lambda: not containers.left(), "the rest goes")


def test_an_interrupted_start_ends_and_leaves_nothing(containers, image):
    for delay_s in (0.0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5):
        with containers.started("--stop-signal", "KILL", image("base"), "sleep", "1000") as process:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            until(lambda path=children: len(path.read_text().split()) > 1, "the image's server starts")
            time.sleep(delay_s)
            process.terminate()
            assert process.wait(30) in {128 + signal.SIGTERM, 128 + signal.SIGKILL}
        assert containers.left() == []


def test_who_a_process_is_does_not_depend_on_what_can_be_fetched(containers, tmp_path):
    accounts = tar(directory(b"etc"), file(b"etc/passwd", b"app:x:1000:1234::/:/bin/sh\n"))
    program = tar(file(b"program", b"#!/none\n", mode=0o755))
    built = build_image([accounts, program], process={"Cmd": ["/program"]})
    layout = write_layout(tmp_path / "image", {"latest": built})
    containers("index", f"oci:{layout}:latest")
    digest = str(built.json["layers"][0]["digest"])
    containers("cache", "rm", digest)
    blob = layout / "blobs/sha256" / digest.removeprefix("sha256:")
    blob.write_bytes(bytes(blob.stat().st_size))
    for user in ("1000", "app", "0:app", ""):
        done = containers("run", "--user", user, f"oci:{layout}:latest", exit_code=125)
        assert done.stderr.splitlines()[-1] == (
            "lazyfs: /etc/passwd cannot be looked at in the container: Input/output error"
        )
        assert re.search(r"lazyfs: .* WARNING .*: cannot answer .*\[EIO\]", done.stderr)


def test_the_cache_may_lie_behind_a_symlink(containers, image, tmp_path):
    there = tmp_path / "there"
    there.symlink_to(containers.runner.cache_dir)
    behind = Containers(LazyfsRunner(home=tmp_path / "home", cache_dir=there))
    assert shell(behind, image, "echo here") == ["here"]


def test_it_is_given_memory_and_devices(containers, image):
    script = """
        stat -f -c %b,%S /dev/shm /scratch; cp /bin/true /scratch/; /scratch/true && echo runs
        head -c 2m /dev/zero >/scratch/much 2>/dev/null || echo full
        test -c /dev/mine && : </dev/mine && echo reads; true 2>/dev/null >/dev/mine || echo not more
    """
    options = ("--shm-size", "2m", "--tmpfs", "/scratch:size=1m,exec", "--device", "/dev/fuse:/dev/mine:r")
    lines = shell(containers, image, script, *options)
    assert lines[:2] == [f"{(2 << 20) // PAGE},{PAGE}", f"{(1 << 20) // PAGE},{PAGE}"]
    assert lines[2:] == ["runs", "full", "reads", "not more"]
    assert shell(containers, image, "test -e /dev/mine || echo none; stat -f -c %b /dev/shm") == [
        "none",
        str((64 << 20) // PAGE),
    ]


def test_root_that_may_not_mount_is_told_what_it_lacks(containers, image):
    words = ["setpriv", "--bounding-set", "-sys_admin", executable(), "run", image("base"), "true"]
    done = subprocess.run(words, env=containers.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 125
    assert "refuses (Operation not permitted): root lacks CAP_SYS_ADMIN" in done.stderr


def test_what_is_told_before_an_image_fails_to_mount_is_told_once(containers, tmp_path):
    layout = write_layout(tmp_path / "image", {"latest": build_image([tar(file(b"program", b"x"))])})
    words = ("--platform", "linux/s390x", "--index", "registry")
    done = containers("run", *words, f"oci:{layout}", exit_code=66)
    warning, error = done.stderr.splitlines()
    assert "has nothing for linux/s390x" in warning
    assert "index" in error
