"""Configuration files in TOML that other programs' administrators write."""

import tomllib
from pathlib import Path
from typing import Any, Final

from lazyfs.errors import ConfigError

_MAX_BYTES: Final = 1 << 20


def read_toml(path: Path) -> dict[str, Any]:
    """What a file holds.

    Raises:
        FileNotFoundError: there is none.
        ConfigError: it cannot be read, or is not TOML, or longer than 1 MiB.
    """
    try:
        with path.open("rb") as opened:
            data = opened.read(_MAX_BYTES + 1)
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
    if len(data) > _MAX_BYTES:
        raise ConfigError(f"{path}: more than {_MAX_BYTES} bytes")
    try:
        return tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None
