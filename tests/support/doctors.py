"""What the doctor's tests have in common: machines that are directories, and what is said of them."""

import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lazyfs.doctor.findings import Finding, State
from lazyfs.doctor.machine import Machine

REAL = Machine(Path("/"), os.geteuid(), os.environ["PATH"] + ":/usr/sbin:/sbin")


def machine_at(root: Path, files: dict[str, str] | None = None, uid: int = 0) -> Machine:
    for name, content in (files or {}).items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return Machine(root, uid, str(root / "bin"))


def program(root: Path, name: str, script: str) -> None:
    path = root / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def states(found: Iterable[Finding]) -> dict[str, str]:
    found = list(found)
    for finding in found:
        assert finding.fact
        assert bool(finding.advice) == (finding.state is not State.OK)
    return {finding.name: finding.state.value for finding in found}


@contextmanager
def listening(path: Path, mode: int = 0o600) -> Iterator[Path]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(mode)
        listener.listen()
        yield path
