"""A real registry, Debian's docker-registry, as a child process on a port of its own."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.support.lab_process import running

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
        with running(["docker-registry", "serve", str(file)], _LISTENING) as listening:
            yield listening[1]


def _merge(target: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target[key] = value
