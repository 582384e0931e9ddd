"""The databases of RPM: in SQLite (RHEL 9, Fedora), ndb (SLES, openSUSE) or Berkeley DB (up to RHEL 8).

The file is a stranger's, so SQLite gets a private copy of it, may read one table and nothing else, and is
stopped when that takes too many steps or gives more bytes than the file has: many rows may share them.
"""

import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

from indexer.errors import FormatError, LimitExceeded
from lazyfs.image.inside.packages.berkeley_db import read_hash
from lazyfs.image.inside.packages.ndb import read_blobs
from lazyfs.image.inside.packages.package import Package
from lazyfs.image.inside.packages.rpm_header import MAX_HEADER, parse_header

DIRECTORIES: Final = (b"usr/lib/sysimage/rpm", b"var/lib/rpm", b"usr/share/rpm")
SQLITE: Final = b"rpmdb.sqlite"
SQLITE_LOG: Final = SQLITE + b"-wal"
NDB: Final = b"Packages.db"
BERKELEY_DB: Final = b"Packages"
NAMES: Final = (SQLITE, NDB, BERKELEY_DB)
"""What databases are called; where there are several, RPM takes the first."""

MAX_DATABASE: Final = 1 << 30

_MAX_PACKAGES: Final = 200_000
_MAX_SCHEMA: Final = 1 << 14  # bytes of what makes a table; RPM's have 200
_HIGHEST: Final = bytes(4)  # the key under which RPM keeps the highest number of a package
_STEPS_AT_ONCE: Final = 100_000
_MAX_STEPS: Final = 1_000_000_000
_READING: Final = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ})


def read_database(database: bytes, log: bytes, where: bytes) -> list[Package]:
    """The packages in the order of the database. Blocks; for a worker thread.

    Args:
        database: the file.
        log: rpmdb.sqlite-wal beside rpmdb.sqlite, else b"".
        where: the file's path in the image; its name tells of which kind it is.

    Raises:
        FormatError: it is damaged, or no database of RPM.
        LimitExceeded: more packages than any system has, or more work than they are worth.
        Unsupported: it is of a kind that RPM does not make.
    """
    name = where.rpartition(b"/")[2]
    if name == NDB:
        return _packages(read_blobs(database), where)
    if name == BERKELEY_DB:
        return _packages(_values(database), where)
    return read_sqlite(database, log, where)


def read_sqlite(database: bytes, log: bytes, where: bytes) -> list[Package]:
    """As `read_database`, of rpmdb.sqlite."""
    with tempfile.TemporaryDirectory(prefix="lazyfs-rpm-") as directory:
        path = Path(directory, "rpmdb.sqlite")
        path.write_bytes(database)
        if log:
            path.with_name("rpmdb.sqlite-wal").write_bytes(log)
        try:
            with closing(sqlite3.connect(path)) as connection:
                return _packages(_headers(connection, len(database) + len(log)), where)
        except sqlite3.OperationalError as error:
            if "interrupted" in str(error):
                raise LimitExceeded("RPM's database takes too long to read") from error
            raise FormatError(f"RPM's database is damaged: {error}") from error
        except (sqlite3.Error, UnicodeDecodeError) as error:  # the latter: SQLite's message quotes the file
            raise FormatError(f"RPM's database is damaged: {error}") from error


def _packages(headers: Iterable[bytes], where: bytes) -> list[Package]:
    packages = []
    for number, header in enumerate(headers):
        if number == _MAX_PACKAGES:
            raise LimitExceeded(f"RPM's database has more than {_MAX_PACKAGES} packages")
        package = parse_header(header, where)
        if package is not None:
            packages.append(package)
    return packages


def _values(database: bytes) -> Iterator[bytes]:
    """The headers in a Berkeley DB, whose keys are the packages' numbers."""
    counted = False
    for key, value in read_hash(database, MAX_HEADER):
        if len(key) != len(_HIGHEST) or (counted and key == _HIGHEST):
            raise FormatError("RPM's database holds something else than packages")
        if key == _HIGHEST:
            counted = True
        else:
            yield value


def _headers(connection: sqlite3.Connection, most: int) -> Iterator[bytes]:
    """All headers, `most` bytes of them."""
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_SCHEMA)
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    connection.execute("PRAGMA mmap_size = 0")
    connection.set_authorizer(_only_packages)
    connection.set_progress_handler(_Steps().more, _STEPS_AT_ONCE)
    connection.execute("SELECT blob FROM Packages LIMIT 0")  # the schema is read
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_HEADER)
    for (blob,) in connection.execute("SELECT blob FROM Packages"):
        if not isinstance(blob, bytes):
            raise FormatError("RPM's database holds something else than headers")
        most -= len(blob)
        if most < 0:
            raise FormatError("RPM's database has headers with more bytes than it has itself")
        yield blob


def _only_packages(action: int, table: str | None, *_more: str | None) -> int:
    allowed = action in _READING and (table is None or table == "Packages")
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


class _Steps:
    """Counts what SQLite does."""

    def __init__(self) -> None:
        self._left = _MAX_STEPS // _STEPS_AT_ONCE

    def more(self) -> bool:
        """Whether it is too much."""
        self._left -= 1
        return self._left < 0
