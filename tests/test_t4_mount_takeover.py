"""A process that answers is killed, and another goes on over the same descriptor."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lazyfs.mount.fuse_mount import Connection, MountOptions, connect_detached
from tests.support.forest_server import forest_server
from tests.support.mount_server import wait_until

CONTENT = os.urandom(3_000_320)


@pytest.fixture
def connection() -> Iterator[Connection]:
    """A mount that is attached nowhere; we keep it alive."""
    connection = connect_detached(MountOptions("forest"))
    yield connection
    os.close(connection.device_fd)
    os.close(connection.mount_fd)


@pytest.fixture
def layer(tmp_path) -> Path:
    path = tmp_path / "layer"
    path.write_bytes(CONTENT)
    return path


def reader_of(connection: Connection, *command: str) -> subprocess.Popen:
    """Runs in the root of the mount."""
    place = f"/proc/self/fd/{connection.mount_fd}"
    shell = ["sh", "-c", f'cd {place} && exec "$@"', "-", *command]
    return subprocess.Popen(shell, pass_fds=[connection.mount_fd], stdout=subprocess.PIPE)


def is_under_way(log: Path, count: int) -> bool:
    """Whether that many reads have reached a layer."""
    return log.read_text().count("reading") >= count


def test_a_reader_whose_server_is_killed_gets_its_bytes_from_the_next(connection, layer, tmp_path):
    log = tmp_path / "log"
    with ExitStack() as stack:
        first = stack.enter_context(forest_server(connection.device_fd, [(layer, "stalled")], None, log))
        settled = json.loads(first.said())
        readers = [reader_of(connection, "cat", "2") for _ in range(5)]
        direct = reader_of(connection, "dd", "if=2", "bs=1M", "iflag=direct", "status=none")
        wait_until(lambda: is_under_way(log, 2))
        first.process.kill()
        first.process.wait()
        waiting = reader_of(connection, "stat", "--format=%s", "2")
        assert all(reader.poll() is None for reader in (*readers, direct))
        second = forest_server(connection.device_fd, [(layer, "remote")], settled, log)
        assert json.loads(stack.enter_context(second).said()) == settled
        for reader in (*readers, direct):
            assert reader.communicate(timeout=20)[0] == CONTENT
            assert reader.returncode == 0
        assert waiting.communicate(timeout=20)[0] == b"%d\n" % len(CONTENT)
    assert "WARNING" not in log.read_text()
