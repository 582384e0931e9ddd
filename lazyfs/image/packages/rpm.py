"""The databases of RPM. The one in SQLite is read; those in Berkeley DB and ndb are recognised and refused.

The file is a stranger's, so SQLite gets a private copy of it, may read one table and nothing else, and is
stopped when that takes too many steps.
"""

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

from indexer.errors import FormatError, LimitExceeded, Unsupported
from lazyfs.image.packages.package import Package
from lazyfs.image.packages.rpm_header import MAX_HEADER, parse_header

DIRECTORIES: Final = (b"usr/lib/sysimage/rpm", b"var/lib/rpm", b"usr/share/rpm")
SQLITE: Final = b"rpmdb.sqlite"
OTHERS: Final = {b"Packages": "Berkeley DB", b"Packages.db": "ndb"}
MAX_DATABASE: Final = 1 << 30

_MAX_PACKAGES: Final = 200_000
_STEPS_AT_ONCE: Final = 100_000
_MAX_STEPS: Final = 1_000_000_000
_READING: Final = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ})


def refuse_other(name: bytes) -> Unsupported:
    """The error for a database that is not in SQLite."""
    return Unsupported(f"RPM's database in {OTHERS[name]} is not read here, only the one in SQLite")


def read_sqlite(database: bytes, log: bytes, where: bytes) -> list[Package]:
    """The packages in the order of the database. Blocks; for a worker thread.

    Args:
        database: rpmdb.sqlite.
        log: rpmdb.sqlite-wal beside it, or b"".
        where: the database's path in the image.

    Raises:
        FormatError: it is damaged, or no database of RPM.
        LimitExceeded: more packages than any system has, or more work than they are worth.
    """
    with tempfile.TemporaryDirectory(prefix="lazyfs-rpm-") as directory:
        path = Path(directory, "rpmdb.sqlite")
        path.write_bytes(database)
        if log:
            path.with_name("rpmdb.sqlite-wal").write_bytes(log)
        try:
            with closing(sqlite3.connect(path)) as connection:
                return [
                    package
                    for blob in _headers(connection)
                    if (package := parse_header(blob, where)) is not None
                ]
        except sqlite3.OperationalError as error:
            if "interrupted" in str(error):
                raise LimitExceeded("RPM's database takes too long to read") from error
            raise FormatError(f"RPM's database is damaged: {error}") from error
        except (sqlite3.Error, UnicodeDecodeError) as error:  # the latter: SQLite's message quotes the file
            raise FormatError(f"RPM's database is damaged: {error}") from error


def _headers(connection: sqlite3.Connection) -> Iterator[bytes]:
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    connection.execute("PRAGMA mmap_size = 0")
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_HEADER)
    connection.set_authorizer(_only_packages)
    connection.set_progress_handler(_Steps().more, _STEPS_AT_ONCE)
    for number, (blob,) in enumerate(connection.execute("SELECT blob FROM Packages ORDER BY hnum")):
        if number == _MAX_PACKAGES:
            raise LimitExceeded(f"RPM's database has more than {_MAX_PACKAGES} packages")
        if not isinstance(blob, bytes):
            raise FormatError("RPM's database holds something else than headers")
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
