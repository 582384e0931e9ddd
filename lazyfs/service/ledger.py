"""The mounts that are ordered, on disk: what the next daemon makes again."""

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lazyfs.errors import BadReference, CacheError
from lazyfs.oci.chain import ChainOrder
from lazyfs.service.protocol import is_name, order_fields, parse_order

_VERSION: Final = 1
_FILE: Final = "mounts.json"


@dataclass(frozen=True, slots=True)
class Entry:
    """A mount that is to be there.

    Attributes:
        name: the mount's name.
        order: what it shows, with the manifest's digest.
    """

    name: str
    order: ChainOrder


class Ledger:
    """The file of ordered mounts. Whole at any time, and on disk when `save` returns.

    Args:
        directory: where it lies.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / _FILE

    def load(self) -> list[Entry]:
        """The mounts of the last `save`; what cannot be understood is left out. Blocks for the disk.

        Raises:
            CacheError: the disk fails.
        """
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CacheError(f"cannot read {self._path}: {error.strerror}") from error
        entries = []
        with suppress(ValueError, RecursionError):
            match json.loads(data):
                case {"version": 1, "mounts": list(records)}:
                    entries = [entry for record in records if (entry := _entry(record)) is not None]
        return entries

    def save(self, entries: Iterable[Entry]) -> None:
        """Keep these mounts and no others. Blocks for the disk.

        Raises:
            CacheError: the disk fails; the file is as it was.
        """
        records = [{"name": entry.name, "order": order_fields(entry.order)} for entry in entries]
        data = json.dumps({"version": _VERSION, "mounts": records}, indent=1).encode()
        made = self._path.with_suffix(".new")
        try:
            with made.open("wb") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            made.rename(self._path)
            directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise CacheError(f"cannot keep {self._path}: {error.strerror}") from error


def _entry(record: object) -> Entry | None:
    match record:
        case {"name": str(name), "order": fields} if is_name(name):
            with suppress(BadReference):
                return Entry(name, parse_order(fields))
    return None
