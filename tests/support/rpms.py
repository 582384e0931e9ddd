"""Real databases of RPM, made by rpm(8) and db5.3_load(1), and such as no rpm would make."""

import sqlite3
import struct
import subprocess
import zlib
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

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
LISTED = "%{NAME} %{EVR} %{ARCH} %{LICENSE}\n"
STRING, INT32 = 6, 4
HIGHEST = bytes(4)
"""The key under which RPM keeps the highest number of a package in a Berkeley DB."""


class Made(NamedTuple):
    """What rpm made.

    Attributes:
        sqlite: rpmdb.sqlite.
        headers: of the packages in it, by number.
        listed: what rpm lists of it, as "NAME EPOCH:VERSION-RELEASE ARCH LICENSE".
    """

    sqlite: bytes
    headers: dict[int, bytes]
    listed: list[str]


def make_database(directory: Path) -> Made:
    """Build packages there and install them, as far as their database goes."""
    work = directory / "work"
    work.mkdir(parents=True)
    (work / "one.spec").write_text(SPEC)
    _run("rpmbuild", "-bb", "--quiet", "--define", f"_topdir {work}", str(work / "one.spec"))
    files = map(str, sorted(work.rglob("*.rpm")))
    _run(*_rpm(directory, "sqlite"), "--force-debian", "--justdb", "--nodeps", "-i", *files)
    path = directory / "rpmdb.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        headers = dict(connection.execute("SELECT hnum, blob FROM Packages"))
    return Made(path.read_bytes(), headers, list_packages(directory, "sqlite"))


def list_packages(directory: Path, backend: str) -> list[str]:
    """What rpm lists of the database there, as "NAME EPOCH:VERSION-RELEASE ARCH LICENSE"."""
    return sorted(_run(*_rpm(directory, backend), "-qa", "--qf", LISTED).splitlines())


def _rpm(directory: Path, backend: str) -> Sequence[str]:
    return ("rpm", "--dbpath", str(directory), "--define", f"_db_backend {backend}")


def _run(*command: str, stdin: str = "") -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, input=stdin).stdout


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


def berkeley_db(
    path: Path, items: Iterable[tuple[bytes, bytes]], *settings: str, kind: str = "hash", cipher: str = ""
) -> bytes:
    """The bytes of a Berkeley DB with these keys and values, made at `path`.

    Args:
        path: where; it must not exist.
        items: keys and values.
        settings: as db5.3_load takes them in the head of a dump: "db_lorder=4321", "db_pagesize=512".
        kind: hash or btree.
        cipher: a password, where it is to be encrypted.
    """
    head = ["VERSION=3", "format=bytevalue", f"type={kind}", *settings, "HEADER=END"]
    lines = [f" {text.hex()}" for item in items for text in item]
    password = ("-P", cipher) if cipher else ()
    _run("db5.3_load", *password, str(path), stdin="\n".join([*head, *lines, "DATA=END", ""]))
    return path.read_bytes()


def berkeley_packages(path: Path, headers: dict[int, bytes], *settings: str) -> bytes:
    """The bytes of RPM's database in a Berkeley DB, as RPM on a little-endian machine writes it."""
    items = [(number.to_bytes(4, "little"), blob) for number, blob in headers.items()]
    return berkeley_db(path, [(HIGHEST, max(headers).to_bytes(4, "little")), *items], *settings)


def ndb(headers: dict[int, bytes]) -> bytes:
    """The bytes of RPM's database in ndb, as `rpmpkgPut` writes it, one package after the other."""
    slots, blobs = [], b""
    pages = (len(headers) + 2 + 255) // 256
    for generation, (number, blob) in enumerate(headers.items(), 1):
        place = struct.pack("<4sIII", b"BlbS", number, generation, len(blob)) + blob
        place += bytes(-(len(place) + 12) % 16)
        place += struct.pack("<II4s", zlib.adler32(place), len(blob), b"BlbE")
        slots.append(struct.pack("<4sIII", b"Slot", number, 256 * pages + len(blobs) // 16, len(place) // 16))
        blobs += place
    slots += [b"Slot".ljust(16, b"\0")] * (256 * pages - 2 - len(slots))
    return struct.pack("<4sIIII12x", b"RpmP", 0, 1 + len(headers), pages, 1) + b"".join(slots) + blobs
