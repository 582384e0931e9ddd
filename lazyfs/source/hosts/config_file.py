"""Configuration files that other programs' administrators write, most of them in TOML."""

import os
import stat
import tomllib
from pathlib import Path
from typing import Any, Final

from lazyfs.errors import ConfigError

MAX_BYTES: Final = 1 << 20


def read_bytes(path: Path) -> bytes:
    """What a file holds; of a longer one than 1 MiB, one byte more.

    Raises:
        OSError: it cannot be read.
        ConfigError: it would hold us.
    """
    with open(path, "rb", opener=_open_nowait) as opened:
        if stat.S_ISFIFO(os.fstat(opened.fileno()).st_mode):
            raise ConfigError(f"{path}: a FIFO, not a file")
        return opened.read(MAX_BYTES + 1)


def read_toml(path: Path) -> dict[str, Any]:
    """What a file holds.

    Raises:
        FileNotFoundError: there is none.
        ConfigError: it cannot be read, or is not TOML, or longer than 1 MiB.
    """
    try:
        data = read_bytes(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    return parse_toml(data, path)


def parse_toml(data: bytes, path: Path) -> dict[str, Any]:
    """What this content of a file holds.

    Raises:
        ConfigError: it is not TOML, or longer than 1 MiB.
    """
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path}: more than {MAX_BYTES} bytes")
    try:
        return tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:  # also of a number that is too long for Python
        raise ConfigError(f"{path}: not TOML: {error}") from None


def _open_nowait(path: str, flags: int) -> int:
    """A FIFO would hold us until somebody writes."""
    return os.open(path, flags | os.O_NONBLOCK)
