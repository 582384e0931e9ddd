"""Readers of the fuse driver whose bytes are away, and will not come, or not soon."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mount_server import (
    PATIENCE_S,
    TWO_LAYERS,
    Server,
    error_of,
    file,
    is_waiting,
    mounted,
    wait_until,
    write_image,
)


@pytest.fixture
def two_layers(tmp_path):
    return write_image(tmp_path / "image", TWO_LAYERS)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_reader_of_a_stalled_layer_can_be_killed_and_nobody_else_waits(two_layers, tmp_path, number):
    with mounted(two_layers, tmp_path / "mnt", "local", "stalled", read_timeout_s=1000) as server:
        readers = [subprocess.Popen(["cat", server.mount_point / "away"]) for _ in range(20)]
        mapper = subprocess.Popen(["cmp", server.mount_point / "away", server.mount_point / "away too"])
        assert (server.mount_point / "here").read_bytes() == b"h" * 5000
        for reader in (*readers, mapper):
            assert reader.poll() is None
            reader.send_signal(number)
            assert reader.wait(PATIENCE_S) == -number
        assert (server.mount_point / "here").stat().st_size == 5000
        assert subprocess.run(["umount", server.mount_point], check=False).returncode == 0
        assert server.process.wait(PATIENCE_S) == 0  # though reads that nobody waits for are still under way


def test_a_stalled_layer_with_many_readers_leaves_room_for_others(tmp_path):
    files = [file(b"away%d" % number, b"a" * 500_000) for number in range(40)]
    image = write_image(tmp_path / "image", [[file(b"here", b"h" * 500_000)], files])
    with mounted(image, tmp_path / "mnt", "local", "stalled", read_timeout_s=1000) as server:
        readers = [subprocess.Popen(["cat", server.mount_point / f"away{number}"]) for number in range(40)]
        wait_until(lambda: all(is_waiting(reader.pid) for reader in readers))
        assert (server.mount_point / "here").read_bytes() == b"h" * 500_000
        for reader in readers:
            reader.kill()
            reader.wait()


def test_after_the_deadline_a_reader_gets_an_error_once_and_a_line_of_log(two_layers, tmp_path):
    with mounted(two_layers, tmp_path / "mnt", "local", "stalled", read_timeout_s=0.1) as server:
        for name in ("away", "away too", "away"):
            assert error_of((server.mount_point / name).read_bytes) == "ETIMEDOUT"
        assert (server.mount_point / "here").read_bytes() == b"h" * 5000
        assert server.logged.count("no answer within 0.1 s") == 1


# What has just failed is not tried again for a second.
READ_UNTIL_IT_WORKS = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
signal.signal(signal.SIGUSR1, lambda *_: print("signalled", flush=True))
opened = os.open(sys.argv[1], os.O_RDONLY)
while True:
    try:
        os.read(opened, 10)
    except OSError:
        pass
    else:
        break
"""


@pytest.fixture
def stuck(two_layers, tmp_path) -> Iterator[tuple[Server, subprocess.Popen]]:
    """A server, and a process that reads a page which is there, and could not be read before.

    The kernel waits for such a one without an end, but tells the server of signals.
    """
    with mounted(two_layers, tmp_path / "mnt", "local", "worsening", read_timeout_s=1000) as server:
        path = server.mount_point / "away"
        assert error_of(path.read_bytes) == "EIO"
        command = [sys.executable, "-c", READ_UNTIL_IT_WORKS, path]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
            wait_until(lambda: _stays_waiting(server, reader))
            yield server, reader
            reader.kill()


def _stays_waiting(server: Server, reader: subprocess.Popen) -> bool:
    """Whether it does nothing but wait for its page while the server answers more than it does in one go."""
    before = _switches(reader.pid)
    for _ in range(300):
        assert not (server.mount_point / f"missing at {time.monotonic_ns()}").exists()
    waits = Path(f"/proc/{reader.pid}/wchan").read_text() == "request_wait_answer"
    return waits and _switches(reader.pid) == before


def _switches(pid: int) -> list[str]:
    """How often it began to run (proc_pid_status(5))."""
    return [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "ctxt_switches" in line]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_after_an_error_a_reader_can_still_be_killed(stuck, number):
    server, reader = stuck
    reader.send_signal(number)
    assert reader.wait(PATIENCE_S) == -number
    assert (server.mount_point / "here").read_bytes() == b"h" * 5000


def test_a_signal_that_is_handled_does_not_end_a_read(stuck):
    server, reader = stuck
    reader.send_signal(signal.SIGUSR1)
    wait_until(lambda: _stays_waiting(server, reader))
    reader.kill()
    assert reader.stdout.read() == ""
    assert reader.wait(PATIENCE_S) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("behaviour", "expected", "logged"),
    [
        ("unreachable", "EIO", "no route to the registry"),
        ("refused", "EACCES", "other credentials"),
        ("corrupt", "EIO", "expected sha256:00"),
        ("buggy", "EIO", "ZeroDivisionError: a bug on purpose"),
        ("short", "EIO", "RuntimeError"),
    ],
)
def test_a_failing_layer_fails_its_readers_alone(two_layers, tmp_path, behaviour, expected, logged):
    with mounted(two_layers, tmp_path / "mnt", "local", behaviour) as server:
        for _ in range(2):
            assert error_of((server.mount_point / "away").read_bytes) == expected
        touch = "import mmap, sys; f = open(sys.argv[1], 'rb'); mmap.mmap(f.fileno(), 0, prot=1)[9]"
        died = subprocess.run([sys.executable, "-c", touch, server.mount_point / "away too"], check=False)
        assert died.returncode == -signal.SIGBUS
        assert (server.mount_point / "here").read_bytes() == b"h" * 5000
        assert logged in server.logged
