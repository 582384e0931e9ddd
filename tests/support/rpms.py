"""Real databases of RPM, made by rpm(8), and such as no rpm would make."""

import sqlite3
import struct
import subprocess
from contextlib import closing
from pathlib import Path

SPEC = """
Name: one
Epoch: 3
Version: 1.2
Release: 4.lab
Summary: One
License: MIT and GPLv2+
BuildArch: noarch
%description
%package -n two-libs
Summary: Two
%description -n two-libs
%files
%files -n two-libs
"""
STRING, INT32 = 6, 4


def make_database(directory: Path) -> list[str]:
    """Make `rpmdb.sqlite` there; what rpm lists of it, as "NAME EPOCH:VERSION-RELEASE ARCH LICENSE"."""
    work = directory / "work"
    work.mkdir(parents=True)
    (work / "one.spec").write_text(SPEC)
    _run("rpmbuild", "-bb", "--quiet", "--define", f"_topdir {work}", str(work / "one.spec"))
    rpm = ("rpm", "--force-debian", "--dbpath", str(directory), "--define", "_db_backend sqlite")
    _run(*rpm, "--justdb", "--nodeps", "-i", *map(str, sorted(work.rglob("*.rpm"))))
    listed = _run(*rpm, "-qa", "--qf", "%{NAME} %{EVR} %{ARCH} %{LICENSE}\n")
    return sorted(listed.splitlines())


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def header(values: dict[int, str | int]) -> bytes:
    """A header with these tags."""
    entries, store = [], b""
    for tag, value in values.items():
        store += bytes(-len(store) % 4)
        raw = struct.pack(">I", value) if isinstance(value, int) else value.encode() + b"\0"
        kind = INT32 if isinstance(value, int) else STRING
        entries.append(struct.pack(">IIII", tag, kind, len(store), 1))
        store += raw
    return struct.pack(">II", len(entries), len(store)) + b"".join(entries) + store


def database(path: Path, script: str, blobs: list[bytes] | None = None) -> bytes:
    """The bytes of a database that a script made, `blobs` put into its Packages."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)
        for blob in blobs or []:
            connection.execute("INSERT INTO Packages(blob) VALUES (?)", (blob,))
        connection.commit()
    return path.read_bytes()
