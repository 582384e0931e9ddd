"""A real registry, Debian's docker-registry, as a child process on a port of its own."""

import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from threading import Thread
from typing import IO, Any

from tests.support.lab_build import LabError

START_TIMEOUT_S = 60
_LISTENING = re.compile(r'msg="listening on ([^",]+)')


@contextmanager
def docker_registry(
    storage: Path, *, read_only: bool = False, settings: Mapping[str, Any] | None = None
) -> Iterator[str]:
    """The address, "127.0.0.1:PORT", of a registry over the directory `storage`.

    Args:
        storage: its root directory; several read-only registries may share one.
        read_only: refuse pushes with 405.
        settings: sections of the registry's configuration to add or replace, deep: `auth`, `middleware`, ...

    Raises:
        LabError: it is not installed, or it does not start.
    """
    configuration: dict[str, Any] = {
        "version": "0.1",
        "log": {"level": "info", "accesslog": {"disabled": True}},
        "storage": {
            "filesystem": {"rootdirectory": str(storage)},
            "delete": {"enabled": True},
            "maintenance": {"readonly": {"enabled": read_only}},
        },
        "http": {"addr": "127.0.0.1:0", "secret": "lab"},
    }
    _merge(configuration, settings or {})
    with TemporaryDirectory(prefix="registry-") as folder:
        file = Path(folder) / "config.yml"
        file.write_text(json.dumps(configuration))  # JSON is YAML
        with _child(file) as address:
            yield address


@contextmanager
def _child(configuration: Path) -> Iterator[str]:
    """The address of a registry process that ends with this block, or with this process if that is first."""
    try:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", "docker-registry", "serve", str(configuration)],
            env={"PATH": os.defpath},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
    except FileNotFoundError:
        raise LabError("setpriv is missing: run scripts/setup test") from None
    assert process.stderr is not None
    found: SimpleQueue[str | LabError] = SimpleQueue()
    # Read to its end, or the registry would block on a full pipe.
    reader = Thread(target=_read_log, args=(process.stderr, found))
    reader.start()
    try:
        address = found.get(timeout=START_TIMEOUT_S)
        if isinstance(address, LabError):
            raise address
        yield address
    finally:
        process.terminate()
        process.wait()
        reader.join()
        process.stderr.close()


def _read_log(log: IO[str], found: "SimpleQueue[str | LabError]") -> None:
    """Put the address the registry listens on, and after the log's end an error that shows its beginning."""
    head: list[str] = []
    for line in log:
        if len(head) < 100:
            head.append(line)
        if match := _LISTENING.search(line):
            found.put(match[1])
    found.put(LabError("docker-registry ended (missing? run scripts/setup test): " + "".join(head)[-2000:]))


def _merge(target: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target[key] = value
